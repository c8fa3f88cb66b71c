package lab

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"
)

// TestNATMatrix runs cells of the NAT matrix, so chosen that every two of NAT, control, mode, client and server meet, as far
// as they can; `scripts/demo -nat` runs all of them. `-run TestNATMatrix/dnat/ftpalg` runs those behind DNAT.
func TestNATMatrix(t *testing.T) {
	requireRoot(t)
	t.Parallel()
	binary, err := buildDaemon()
	if err != nil {
		t.Fatal(err)
	}
	config := Config{ServersDir: serversDir, Binary: binary}
	var order []string
	lanes := make(map[string][]Cell)
	for _, c := range Pairwise(Cells()) {
		if lanes[c.Lane()] == nil {
			order = append(order, c.Lane())
		}
		lanes[c.Lane()] = append(lanes[c.Lane()], c)
	}
	for _, lane := range order {
		t.Run(lane, func(t *testing.T) {
			t.Parallel()
			stage, err := NewNATStage(t.Context(), lanes[lane][0], config)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := stage.Close(); err != nil {
					t.Error(err)
				}
			}()
			for _, c := range lanes[lane] {
				if r := stage.RunCell(t.Context(), c); r.Err != nil {
					t.Errorf("%s: %v", c, r.Err)
					for _, e := range r.Log {
						t.Log("ftpalg:", e.Line)
					}
				}
			}
		})
	}
}

// TestNATComesLate: a firewall that is loaded behind ftpalg brings source NAT, and clients announce addresses that have to be
// rewritten.
func TestNATComesLate(t *testing.T) {
	requireRoot(t)
	t.Parallel()
	binary, err := buildDaemon()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(Cells(), func(c Cell) bool { return c.String() == "snat/ftpalg/vsftpd/ftplib/plain/PORT/v4" })
	c := Cells()[i]
	stage, err := newNATStage(t.Context(), c, Config{ServersDir: serversDir, Binary: binary}, func(s *Stage, ctx context.Context) error {
		if err := c.Guard.install(ctx, s); err != nil {
			return err
		}
		mark := s.Daemon.Mark()
		if err := s.Lab.translate(ctx, c.NAT); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, patient(30*time.Second))
		defer cancel()
		_, err := s.Daemon.WaitEvent(ctx, mark, func(e Event) bool { return e.Msg == "helper" })
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if r := stage.RunCell(t.Context(), c); r.Err != nil {
		t.Error(r.Err)
	}
	if err := stage.Close(); err != nil {
		t.Error(err)
	}
}

// An exposure is read from what conntrack prints.
func TestWindows(t *testing.T) {
	w := &watch{proc: &Proc{}}
	tuple := "src=192.0.2.2 dst=203.0.113.2 sport=0 dport=50006 mask-src=255.255.255.255 mask-dst=255.255.255.255 sport=0 dport=65535 " +
		"master-src=192.0.2.2 master-dst=203.0.113.2 sport=40000 dport=21 class=0 helper=ftp"
	_, _ = fmt.Fprintf(&w.proc.log, "[1795560301.100000]\t    [NEW] 300 proto=6 %s\n", tuple) // a buffer does not fail
	if all := w.since(0); len(all) != 1 || !all[0].Closed.IsZero() {
		t.Errorf("one that stands: %v", all)
	}
	_, _ = fmt.Fprintf(&w.proc.log, "[1795560301.600000]\t[DESTROY] 300 proto=6 %s\n", tuple)
	all := w.since(0)
	if len(all) != 1 || all[0].PortSeconds() != 0.5 || !all[0].From.IsSingleIP() || all[0].To.String() != "203.0.113.2:50006" {
		t.Errorf("got %v", all)
	}
}
