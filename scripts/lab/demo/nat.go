package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"ftpalg/scripts/lab"

	"golang.org/x/sync/errgroup"
)

const natHeading = `Each cell is one session of a client: a download and an upload, compared by checksum, through a gateway with the
administrator's own NAT rules. Passed/tried, over clients and servers; n/p: not possible without a key, for the reasons below.
The exposure is the median of a session, in port-seconds:
  helper, ftpalg   how long the kernel expected a connection, by its own report; one host is admitted
  static           the open ports times the time of the session; every host is admitted, and it stays open for ever
bare is the NAT of whole addresses without a filter: what fails there fails because of addresses in the payload.
While each expectation stands third hosts on either side try its port, and a client that holds still is tried as well;
through the static range the same probe has to get through.

`

// natRow is a line of the table: the cells that differ in client and server only.
type natRow struct {
	nat, announce, control, mode string
	family                       lab.Family
}

// natColumn is a column of it.
type natColumn struct {
	guard      lab.Guard
	terminated bool
}

var natColumns = []natColumn{{guard: lab.Bare}, {guard: lab.Kernel}, {guard: lab.Static}, {guard: lab.Ours}, {guard: lab.Ours, terminated: true}}

// tally is what came of the cells of one row in one column.
type tally struct {
	passed, tried, impossible int
	exposure                  []float64
}

func (t *tally) String() string {
	text := fmt.Sprintf("%d/%d", t.passed, t.tried)
	if t.tried == 0 {
		text = ""
	}
	if t.impossible > 0 {
		text = strings.TrimSpace(fmt.Sprintf("%s n/p %d", text, t.impossible))
	}
	if len(t.exposure) > 0 {
		text += fmt.Sprintf(" %.4g", t.median())
	}
	if text == "" {
		return "-"
	}
	return text
}

func (t *tally) median() float64 {
	sorted := slices.Sorted(slices.Values(t.exposure))
	return sorted[len(sorted)/2]
}

// matrix collects results while labs run side by side.
type matrix struct {
	mu      sync.Mutex
	w       io.Writer
	rows    []natRow
	tallies map[natRow]map[natColumn]*tally
	reasons []string
	bare    map[string]bool // whether a cell passes without a filter
	probes  int
	counts  struct{ passed, failed, impossible, notApplicable int }
}

// showNAT runs the NAT matrix and prints it.
func showNAT(ctx context.Context, w io.Writer, config lab.Config, match string, pairs bool) (failed int, err error) {
	start := time.Now()
	m := &matrix{w: w, tallies: make(map[natRow]map[natColumn]*tally), bare: make(map[string]bool)}
	lanes := m.lanes(match, pairs)
	if len(lanes) == 0 {
		return 0, fmt.Errorf("no cell of the NAT matrix has %q in its name", match)
	}
	fmt.Fprint(w, natHeading)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for _, lane := range lanes {
		group.Go(func() error { return m.runLane(ctx, config, lane) })
	}
	if err := group.Wait(); err != nil {
		return 0, err
	}
	m.print()
	fmt.Fprintf(w, "\n%d cells of ftpalg's passed, %d failed, %d not possible; %d n/a; %d probes of third hosts; %s\n", m.counts.passed,
		m.counts.failed, m.counts.impossible, m.counts.notApplicable, m.probes, time.Since(start).Round(time.Second))
	return m.counts.failed, nil
}

// lanes groups the cells that match by the lab that they share, and notes the rows in order.
func (m *matrix) lanes(match string, pairs bool) (lanes [][]lab.Cell) {
	all, last := lab.Cells(), ""
	if pairs {
		all = lab.Pairwise(all)
	}
	for _, c := range all {
		if !strings.Contains(c.String(), match) {
			continue
		}
		if c.Lane() != last {
			lanes, last = append(lanes, nil), c.Lane()
		}
		lanes[len(lanes)-1] = append(lanes[len(lanes)-1], c)
		if row := rowOf(c); m.tallies[row] == nil {
			m.rows = append(m.rows, row)
			m.tallies[row] = make(map[natColumn]*tally)
			for _, column := range natColumns {
				m.tallies[row][column] = &tally{}
			}
		}
	}
	return lanes
}

func rowOf(c lab.Cell) natRow {
	return natRow{c.NAT.Name, string(c.Announce), string(c.Control()), string(c.Mode), c.Family}
}

func (m *matrix) runLane(ctx context.Context, config lab.Config, lane []lab.Cell) (err error) {
	stage, err := lab.NewNATStage(ctx, lane[0], config)
	if err != nil {
		return fmt.Errorf("%s: %w", lane[0].Lane(), err)
	}
	defer func() { err = errors.Join(err, stage.Close()) }()
	for _, c := range lane {
		why := c.NotPossible()
		if c.Guard == lab.Ours && why != "" && c.NotApplicable() == "" {
			m.impossible(c, why)
			continue
		}
		result := stage.RunCell(ctx, c)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		m.note(c, result)
	}
	return nil
}

// impossible notes a cell that is not tried, and why. The bare gateway shows whether that is so: see print.
func (m *matrix) impossible(c lab.Cell, why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.counts.impossible++
	m.tallies[rowOf(c)][natColumn{guard: lab.Ours}].impossible++
	m.reasons = append(m.reasons, fmt.Sprintf("%s/%s/%s: %s", c.NAT.Name, c.Control(), c.Mode, why))
}

func (m *matrix) note(c lab.Cell, r lab.CellResult) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.probes += r.Strangers.Sent
	if r.NotApplicable != "" {
		m.counts.notApplicable++
		return
	}
	t := m.tallies[rowOf(c)][natColumn{c.Guard, c.Data != lab.Closed}]
	t.tried++
	if r.Err == nil {
		t.passed++
		if c.Guard != lab.Bare && !c.Holds() {
			t.exposure = append(t.exposure, r.PortSeconds(c))
		}
	}
	if c.Guard == lab.Bare && r.Err == nil && c.NotPossible() != "" {
		m.fail(c, fmt.Errorf("it passes without a filter, and is said to be not possible: %s", c.NotPossible()), nil)
	}
	if c.Guard != lab.Ours {
		return
	}
	if r.Err != nil {
		m.fail(c, r.Err, r.Log)
		return
	}
	m.counts.passed++
}

// fail prints a failure at once, for those who wait.
func (m *matrix) fail(c lab.Cell, err error, log []lab.Event) {
	m.counts.failed++
	fmt.Fprintf(m.w, "FAIL %s\n    %s\n", c, strings.ReplaceAll(err.Error(), "\n", "\n    "))
	for _, e := range log[:min(len(log), logLines)] {
		fmt.Fprintf(m.w, "    ftpalg: %s\n", e.Line)
	}
}

const natLayout = "%-8s %-7s %-9s %-4s %-2s  %-6s %-16s %-16s %-16s %-16s %s\n"

func (m *matrix) print() {
	fmt.Fprintln(m.w)
	fmt.Fprintf(m.w, natLayout, "NAT", "227", "control", "mode", "IP", "bare", "helper", "static", "ftpalg", "with a key", "of static")
	var worst float64
	ratios, least, most := 0, 0, 0
	for _, row := range m.rows {
		var text []any
		for _, column := range natColumns {
			text = append(text, m.tallies[row][column].String())
		}
		ratio := m.ratio(row)
		if ratio > 0 {
			ratios++
			worst = max(worst, ratio)
			text = append(text, fmt.Sprintf("1/%.0f", 1/ratio))
		} else {
			text = append(text, "")
		}
		if helper := m.tallies[row][natColumns[1]]; len(helper.exposure) > 0 && len(m.tallies[row][natColumns[3]].exposure) > 0 {
			most++
			if m.tallies[row][natColumns[3]].median() <= helper.median() {
				least++
			}
		}
		fmt.Fprintf(m.w, natLayout, append([]any{row.nat, row.announce, row.control, row.mode, row.family}, text...)...)
	}
	if ratios > 0 {
		fmt.Fprintf(m.w, "\nftpalg's exposure is at most 1/%.0f of the static range's, in %d rows", 1/worst, ratios)
	}
	fmt.Fprintf(m.w, "\nit is the least in %d of the %d rows that the kernel's helper passes too\n", least, most)
	for _, reason := range slices.Compact(slices.Sorted(slices.Values(m.reasons))) {
		fmt.Fprintf(m.w, "not possible: %s\n", reason)
	}
}

// ratio is ftpalg's exposure in a row, the worse of without and with a key, to the static range's; 0 if there is none.
func (m *matrix) ratio(row natRow) (ratio float64) {
	static := m.tallies[row][natColumns[2]]
	if len(static.exposure) == 0 {
		return 0
	}
	for _, column := range natColumns[3:] {
		if ours := m.tallies[row][column]; len(ours.exposure) > 0 {
			ratio = max(ratio, ours.median()/static.median())
		}
	}
	return ratio
}
