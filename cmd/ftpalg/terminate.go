package main

import (
	"cmp"
	"context"
	"net"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"ftpalg/alg/audit"
	"ftpalg/alg/terminate"
	"ftpalg/alg/terminate/cert"
	"ftpalg/policy"
)

// renewEvery is how often the certificates' files are looked at: whoever renews them need not tell us.
const renewEvery = 30 * time.Second

// transparentPorts is how many ports are tried for the connections that ftpalg terminates: some program may hold the first, or hold
// it to keep ftpalg from starting, and whoever takes this many in a row can take all.
const transparentPorts = 64

// newTerminating makes the front end of terminated connections.
func (d *daemon) newTerminating() *terminate.Gateway {
	t := d.steering.terminate()
	return terminate.New(terminate.Options{
		Policy: d.policy, Certificates: d.certs.Load(), Conntrack: expecting{d.conntrack, d.replaceEarlier}, Books: d.books, Report: d.reporter.report,
		Number: d.number, RelayMark: t.Relay, OwnMark: t.Own, Stray: d.passOn,
	})
}

// terminates reports whether any rule of a policy terminates connections.
func terminates(p *policy.Policy) bool {
	return slices.ContainsFunc(p.Rules, func(r policy.Rule) bool { return r.Action == policy.Terminate })
}

// listenTransparently opens what TPROXY hands connections to, once a policy needs it. The rules that do so go in later, with the
// port that was free; rules of the operator's own (--no-rules) name the port that was asked for, so it must be that one.
func (d *daemon) listenTransparently(ctx context.Context, tasks *errgroup.Group) error {
	if len(d.listeners) > 0 || !terminates(d.policy) {
		return nil
	}
	t, tries := d.steering.terminate(), transparentPorts
	if d.noRules {
		tries = 1
	}
	listeners, err := terminate.Listen(t.Port, tries, t.Own)
	if err != nil {
		return err
	}
	d.accept(ctx, tasks, listeners)
	if d.port != t.Port {
		d.log.Warn("somebody else holds the port for terminated connections; the rules lead to another", "wanted", t.Port, "port", d.port)
	}
	return nil
}

// accept has the connections carried that listeners accept. The rules lead to their port from now on.
func (d *daemon) accept(ctx context.Context, tasks *errgroup.Group, listeners []*net.TCPListener) {
	d.listeners = listeners
	for _, l := range listeners {
		d.port = l.Addr().(*net.TCPAddr).AddrPort().Port()
		tasks.Go(func() error { return d.terminating.Accept(ctx, l) })
	}
}

// draining are the servers of terminated sessions: ours, and those of a predecessor that is there.
func (d *daemon) draining() []netip.Addr {
	all := d.terminating.Servers()
	if d.predecessor.open() {
		all = append(all, d.handed.Draining...)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return slices.Compact(all)
}

// renew loads certificates again whose files have changed. While they are wrong the old ones stay in force.
func (d *daemon) renew() {
	if !d.certs.Load().Stale() {
		return
	}
	certs, err := cert.Load(d.policy)
	if err != nil {
		d.log.Error("certificates not reloaded; the old ones stay in force", "err", err)
		return
	}
	d.certs.Store(certs)
	d.terminating.SetPolicy(d.policy, certs)
	d.log.Info("certificates reloaded")
}

// allSessions lists the sessions of both front ends, oldest first.
func (d *daemon) allSessions() []audit.SessionInfo {
	all := append(d.inspector.Sessions(), d.terminating.Sessions()...)
	slices.SortFunc(all, func(a, b audit.SessionInfo) int { return cmp.Compare(a.Number, b.Number) })
	return all
}
