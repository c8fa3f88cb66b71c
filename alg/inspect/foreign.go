package inspect

import (
	"time"

	"ftpalg/alg"
	"ftpalg/alg/ledger"
	"ftpalg/conntrack"
)

// Expects reports whether an expectation is under a session's control connection, and whether the session asked for it.
func (in *Inspector) Expects(x conntrack.Expectation) (session uint64, asked bool) {
	k := Key{x.Master.Src, x.Master.Dst}
	sh := in.shard(k.Client.Addr(), k.Server.Addr())
	sh.mu.Lock()
	defer sh.mu.Unlock()
	s := sh.sessions[k]
	if s == nil {
		return 0, false
	}
	return s.number, sh.open[ledger.Door{From: x.From, To: x.To}] == s
}

// Abort ends the session of a control connection, if there is one. Both its ends are reset when they say something.
func (in *Inspector) Abort(now time.Time, master conntrack.Tuple, why alg.Reason) {
	k := Key{master.Src, master.Dst}
	sh := in.shard(k.Client.Addr(), k.Server.Addr())
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if s := sh.sessions[k]; s != nil && s.control != nil && !s.refused {
		sh.fx = s.control.Abort(why, sh.fx[:0])
		in.carryOut(sh, s, now, nil)
	}
}
