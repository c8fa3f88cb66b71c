package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
)

// row is one line of the table: what was measured, and what came of it in each of the ways.
type row struct {
	measure string
	cells   [ways]string
	ratio   string
	target  string
	met     string
	shown   bool // in the part of the table that it belongs to
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
	for _, columns := range [][]int{inspectingWays, terminatingWays, queueWays, flowtableWays, buildWays} {
		if err := t.part(w, columns); err != nil {
			return err
		}
	}
	for _, note := range t.notes {
		if _, err := fmt.Fprintln(w, "-", note); err != nil {
			return err
		}
	}
	return nil
}

// part writes the rows that have something to say in these columns, and a line without anything behind them.
func (t *table) part(w io.Writer, columns []int) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(tw, "measure\t")
	for _, way := range columns {
		fmt.Fprintf(tw, "%s\t", wayNames[way])
	}
	fmt.Fprintln(tw, "ratio\ttarget\t")
	var any bool
	for i := range t.rows {
		r := &t.rows[i]
		if r.shown || !r.speaksOf(columns) {
			continue
		}
		any, r.shown = true, true
		fmt.Fprintf(tw, "%s\t", r.measure)
		for _, way := range columns {
			fmt.Fprintf(tw, "%s\t", orDash(r.cells[way]))
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\n", orDash(r.ratio), orDash(r.target), r.met)
	}
	if !any {
		return nil
	}
	fmt.Fprintln(tw)
	return tw.Flush()
}

// speaksOf says whether all that a row has to say is in these columns.
func (r *row) speaksOf(columns []int) bool {
	for way, cell := range r.cells {
		if cell != "" && !slices.Contains(columns, way) {
			return false
		}
	}
	return true
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
