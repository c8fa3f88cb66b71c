package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ftpalg/alg"
	"ftpalg/alg/audit"
	"ftpalg/alg/ledger"
)

// Log lines are bounded each second, whatever clients and servers do. limits.audit-rate is the bound on refusals and what is
// audited, and once more on those of strangers.
const (
	// recordsPerAudit is how many lines there may be about sessions that go as they should, for each about a refusal: a session
	// has about five, and the default of limits.audit-rate leaves room for 200 sessions a second.
	recordsPerAudit = 20
	// clientTenths is one client's share of each bound, in tenths: so the refusals of one cannot hide those of another.
	clientTenths = 4
	// Bytes of one text or error. A certificate may have 600 kB of names, and an error quotes it. The stack of a fault of ours
	// has to be readable.
	maxLogText  = 300
	maxLogError = 500
	maxLogStack = 8 << 10
)

// reporter logs events: the session's number first, wire text quoted. What is over a bound is told as a sum each second.
type reporter struct {
	log       *slog.Logger
	records   *budget // of sessions that go as they should
	refusals  *budget // of sessions: what was refused to them or only audited
	strangers *budget // of packets and connections that belong to no session
	queues    *budget // of faults of the queues, which may be one for each packet

	faults atomic.Uint64 // mistakes of ours (panics) that ended a session
}

// newReporter makes the reporter. rate returns limits.audit-rate of the policy in force.
func newReporter(log *slog.Logger, rate func() int) *reporter {
	return &reporter{
		log:       log,
		records:   newBudget("sessions", func() int { return recordsPerAudit * rate() }),
		refusals:  newBudget("refusals", rate),
		strangers: newBudget("strangers", rate),
		queues:    newBudget("queues", rate),
	}
}

// report logs an event, if there is room in its budget.
func (r *reporter) report(e audit.Event) {
	if fault := new(audit.Fault); errors.As(e.Err, &fault) {
		r.fault(e.Session, fault)
		e.Err = nil
	}
	b, client, level := r.records, e.Client, slog.LevelInfo
	if e.Kind == audit.EventDeny {
		level = slog.LevelWarn
	}
	switch {
	case e.Session == 0:
		b, client = r.strangers, e.From.Addr()
	case e.Kind == audit.EventDeny, e.Kind == audit.EventAudit:
		b = r.refusals
	}
	ok, before := b.take(e.Time, client, eventName(e))
	r.tellSum(b, before)
	if ok {
		r.log.LogAttrs(context.Background(), level, eventMessages[e.Kind], eventAttrs(e)...)
	}
}

const faultMessage = "a fault of ftpalg ended this session; please report it"

// fault logs a mistake of ours with its stack, and counts it. It has no budget: each ends a session, and ought to be found.
func (r *reporter) fault(session uint64, fault *audit.Fault) {
	r.log.Error(faultMessage, "session", session, "faults", r.faults.Add(1),
		"err", audit.Cut(fault.Error(), maxLogError), "stack", audit.Cut(string(fault.Stack), maxLogStack))
}

// tell logs the sums of the seconds that are over. Call it every second.
func (r *reporter) tell(now time.Time) {
	for _, b := range r.budgets() {
		r.tellSum(b, b.turn(now))
	}
}

func (r *reporter) tellSum(b *budget, s sum) {
	if n := s.count(); n > 0 {
		attrs := []any{"count", n, "of", b.of, "reasons", s.String()}
		if s.most.IsValid() {
			attrs = append(attrs, "most_lines_of", s.most.Addr().String())
		}
		r.log.Warn("lines suppressed", attrs...)
	}
}

// shares describes the budgets of this second.
func (r *reporter) shares() (list []ledger.Share) {
	for _, b := range r.budgets() {
		list = append(list, ledger.Share{Name: "log lines this second, " + b.of, Use: b.lines.Use()})
	}
	return list
}

func (r *reporter) budgets() [4]*budget {
	return [4]*budget{r.records, r.refusals, r.strangers, r.queues}
}

// queueLog is the logger for queues.
func (r *reporter) queueLog() *slog.Logger { return slog.New(queueHandler{r.log.Handler(), r}) }

// queueHandler bounds the lines of queues.
type queueHandler struct {
	slog.Handler
	reporter *reporter
}

// Handle implements slog.Handler.
func (h queueHandler) Handle(ctx context.Context, line slog.Record) error {
	b := h.reporter.queues
	ok, before := b.take(line.Time, netip.Addr{}, line.Message)
	h.reporter.tellSum(b, before)
	if !ok {
		return nil
	}
	return h.Handler.Handle(ctx, line)
}

// sum is what was suppressed in a second.
type sum struct {
	lines map[string]int // by what they would have told: at most one entry for each reason and kind
	most  netip.Prefix   // the client with most lines that were logged
}

func (s sum) count() (n int) {
	for _, some := range s.lines {
		n += some
	}
	return n
}

// String lists the reasons, the most frequent first.
func (s sum) String() string {
	var parts []string
	for _, why := range slices.SortedFunc(maps.Keys(s.lines), func(a, b string) int {
		return cmp.Or(cmp.Compare(s.lines[b], s.lines[a]), cmp.Compare(a, b))
	}) {
		parts = append(parts, fmt.Sprintf("%s %d", why, s.lines[why]))
	}
	return strings.Join(parts, ", ")
}

// budget bounds the lines of a second, those of one client too.
type budget struct {
	of    string
	lines *ledger.Account // of this second

	mu         sync.Mutex     // guards what follows
	second     time.Time      // when it began
	suppressed map[string]int // in it, as in sum
}

func newBudget(of string, rate func() int) *budget {
	return &budget{of: of, suppressed: map[string]int{}, lines: ledger.New(func() ledger.Limits {
		n := rate()
		return ledger.Limits{Total: n, Client: max(1, n*clientTenths/10)}
	})}
}

// take reports whether there is room for a line of a client's doing, which tells of what. If it is the first of a second, the
// sum is what was suppressed before.
func (b *budget) take(now time.Time, client netip.Addr, what string) (ok bool, before sum) {
	before = b.turn(now)
	if b.lines.Take(client, 1) == nil {
		return true, before
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.suppressed[what]++
	return false, before
}

// turn begins another second if one is over, and returns what was suppressed in it.
func (b *budget) turn(now time.Time) (before sum) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now.Sub(b.second) < time.Second {
		return sum{}
	}
	before = sum{b.suppressed, b.lines.Use().Top}
	b.second, b.suppressed = now, map[string]int{}
	b.lines.Clear()
	return before
}

// eventName is the reason of an event, or its kind where it has none.
func eventName(e audit.Event) string {
	if e.Reason != alg.NoReason {
		return e.Reason.String()
	}
	return e.Kind.String()
}

var eventMessages = map[audit.EventKind]string{
	audit.EventSession: "session", audit.EventLogin: "login", audit.EventProtection: "protection",
	audit.EventPinhole: "pinhole", audit.EventClosed: "pinhole closed", audit.EventDeny: "deny",
	audit.EventAudit: "audit", audit.EventEnd: "session ended",
}

func eventAttrs(e audit.Event) []slog.Attr {
	attrs := make([]slog.Attr, 0, 8)
	if e.Session != 0 {
		attrs = append(attrs, slog.Uint64("session", e.Session))
	}
	if e.Reason != alg.NoReason {
		attrs = append(attrs, slog.String("reason", e.Reason.String()))
	}
	switch e.Kind {
	case audit.EventPinhole, audit.EventClosed:
		attrs = append(attrs, slog.String("mode", e.Mode.String()),
			slog.String("from", e.From.Addr().String()), slog.String("to", e.To.String()))
	case audit.EventProtection:
		attrs = append(attrs, slog.String("control", e.Protection.Control.String()),
			slog.String("data", e.Protection.Data.String()))
	case audit.EventLogin:
		attrs = append(attrs, slog.String("user", audit.Cut(e.Text, maxLogText)))
	default:
		if e.From.IsValid() {
			attrs = append(attrs, slog.String("client", e.From.String()), slog.String("server", e.To.String()))
		}
		if e.Text != "" {
			attrs = append(attrs, slog.String("text", audit.Cut(e.Text, maxLogText)))
		}
	}
	if e.Err != nil {
		// An error may quote all that a peer has sent.
		attrs = append(attrs, slog.String("err", audit.Cut(e.Err.Error(), maxLogError)))
	}
	return attrs
}
