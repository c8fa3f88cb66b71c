package main

import (
	"fmt"
	"io"
	"text/tabwriter"
)

// row is one line of the table: what was measured, and what came of it in each of the four ways.
type row struct {
	measure string
	cells   [ways]string
	ratio   string
	target  string
	met     string
}

// table is the whole result.
type table struct {
	rows  []row
	notes []string
}

func (t *table) add(r row) { t.rows = append(t.rows, r) }

func (t *table) note(format string, args ...any) {
	t.notes = append(t.notes, fmt.Sprintf(format, args...))
}

// print writes the table and the notes below it.
func (t *table) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "measure\trouted\tkernel helper\tfloor\tftpalg\tratio\ttarget\t")
	for _, r := range t.rows {
		fmt.Fprintf(tw, "%s\t", r.measure)
		for _, cell := range r.cells {
			fmt.Fprintf(tw, "%s\t", orDash(cell))
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\n", orDash(r.ratio), orDash(r.target), r.met)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for i, note := range t.notes {
		if i == 0 {
			fmt.Fprintln(w)
		}
		if _, err := fmt.Fprintln(w, "-", note); err != nil {
			return err
		}
	}
	return nil
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// verdict says whether a target is reached.
func verdict(met bool) string {
	if met {
		return "met"
	}
	return "NOT MET"
}

// medians formats the median of each way's rounds.
func (s *series) medians(format string) (cells [ways]string) {
	for way, values := range s {
		if len(values) > 0 {
			cells[way] = fmt.Sprintf(format, median(values))
		}
	}
	return cells
}

// withSpread formats the median of ratios and its quartiles.
func withSpread(ratios []float64) string {
	low, high := spread(ratios)
	return fmt.Sprintf("%.2f (%.2f-%.2f)", median(ratios), low, high)
}
