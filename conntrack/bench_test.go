package conntrack

import (
	"net/netip"
	"slices"
	"testing"
	"time"
)

// BenchmarkExpect prints what installing an expectation with its timeout takes at the median and at the 99th
// percentile. Withdrawing it again, which is outside the clock, keeps the table empty.
func BenchmarkExpect(b *testing.B) {
	l := newLab(b)
	l.serve(b, netip.AddrPortFrom(server4, ftpPort))
	x := Expectation{
		Master:  l.control(b, client4, netip.AddrPortFrom(server4, ftpPort)),
		From:    netip.AddrPortFrom(client4, 0),
		To:      netip.AddrPortFrom(server4, dataPort),
		Timeout: 30 * time.Second,
	}
	var took []time.Duration
	b.ReportAllocs()
	for b.Loop() {
		start := time.Now()
		if err := l.conn.Expect(x); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
		if err := l.conn.Withdraw(x); err != nil {
			b.Fatal(err)
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2])/1e3, "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100])/1e3, "p99-µs")
}
