package alg

import (
	"math"
	"slices"
)

// kind is what the engine has to know of a command until its reply comes.
type kind uint8

const (
	other kind = iota
	greeting
	auth       // AUTH with one of TLS's names
	authOther  // AUTH with another mechanism
	authOpened // AUTH of TLS that the front end speaks itself
	user
	pass
	rein
	quit
	stat
	pasv
	epsv
	epsvAll
	active // PORT, EPRT
	upload
	download
	listing
	protC
	protP
	cwd
	pwd
	denied
	representation // TYPE
)

// direction is that of a transfer command.
func (k kind) direction() Direction {
	switch k {
	case upload:
		return Upload
	case download:
		return Download
	case listing:
		return Listing
	}
	return NoTransfer
}

// maxRuns bounds the runs of equal kinds among the outstanding commands. A client that pipelines asks the same of many
// files, and what needs nothing counts as one kind.
const maxRuns = 48

// queue holds the kinds of the commands without a final reply, oldest first, in runs of equal ones. A server answers in
// that order, except for STAT during a transfer (RFC 959 section 4.1.3).
type queue struct {
	runs [maxRuns]run
	used uint8  // runs
	n    uint16 // commands
}

type run struct {
	Kind kind
	N    uint16
}

// push adds the newest command, unless limit are outstanding already, or too many runs.
func (q *queue) push(k kind, limit int) bool {
	switch {
	case int(q.n) >= min(limit, math.MaxUint16):
		return false
	case q.used > 0 && q.runs[q.used-1].Kind == k:
		q.runs[q.used-1].N++
	case q.used == maxRuns:
		return false
	default:
		q.runs[q.used] = run{k, 1}
		q.used++
	}
	q.n++
	return true
}

// oldest is the command that the next final reply belongs to; other when nothing is outstanding.
func (q *queue) oldest() kind {
	if q.used == 0 {
		return other
	}
	return q.runs[0].Kind
}

// pop takes the oldest command out.
func (q *queue) pop() {
	if q.used > 0 {
		q.take(0)
	}
}

// take removes one command of run i.
func (q *queue) take(i int) {
	q.n--
	if q.runs[i].N--; q.runs[i].N == 0 {
		q.used--
		copy(q.runs[i:], q.runs[i+1:q.used+1])
	}
}

// popStat takes the oldest STAT out, if there is one.
func (q *queue) popStat() bool {
	i := q.find(stat)
	if i >= 0 {
		q.take(i)
	}
	return i >= 0
}

// skipTo drops what is older than the first k, if there is one.
func (q *queue) skipTo(k kind) bool {
	i := q.find(k)
	for ; i > 0; i-- {
		q.n -= q.runs[0].N
		q.used--
		copy(q.runs[:], q.runs[1:q.used+1])
	}
	return i == 0
}

// transfer gives the direction of the oldest transfer.
func (q *queue) transfer() Direction {
	for _, r := range q.runs[:q.used] {
		if d := r.Kind.direction(); d != NoTransfer {
			return d
		}
	}
	return NoTransfer
}

func (q *queue) find(k kind) int {
	return slices.IndexFunc(q.runs[:q.used], func(r run) bool { return r.Kind == k })
}
