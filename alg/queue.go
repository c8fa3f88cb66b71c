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
	auth      // AUTH with one of TLS's names
	authOther // AUTH with another mechanism
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
	noop
	abor
	blank // a line without text, which some servers answer
	renameTo
	own // answered here: no reply of the server's belongs to it
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

// optional reports whether servers may leave such a command without a reply: what is sent during a transfer (RFC 959 section
// 4.1.3) is answered at once, after it, together with it, or not at all.
func (k kind) optional() bool { return k == noop || k == abor || k == stat || k == quit || k == blank }

// fits reports whether a command of this kind may have a final reply with this code (RFC 959 section 5.4, RFC 2228 section 5,
// RFC 2428). Servers take liberties; what counts is which codes only some commands have.
func (k kind) fits(code int) bool {
	if code >= 400 {
		return !k.optional() || code >= 500 && code <= 504 || code == 530
	}
	switch k {
	case greeting:
		return true
	case upload, download, listing:
		return code == 226 || code == 250
	case abor:
		return code == 225 || code == 226
	case pasv, epsv:
		return code == 227 || code == 229
	case auth, authOther:
		return code == 234 || code == 334
	case renameTo:
		return code == 250 || code == 200
	case user, pass:
		return code == 230 || code == 232 || code == 202 || code == 331 || code == 332
	case quit:
		return code == 221
	case stat:
		return code >= 211 && code <= 213
	case pwd:
		return code == 257
	case cwd:
		return code == 250 || code == 200
	case active, noop, protC, protP, epsvAll:
		return code == 200
	case rein:
		return code == 220 || code == 200
	case denied, blank:
		return false
	}
	return !slices.Contains(reserved, code)
}

// reserved are the codes of success that no other command has than those that fits names.
var reserved = []int{225, 226, 227, 229, 230, 234, 331}

// lasting reports whether what the engine believes later depends on the reply to such a command.
func (k kind) lasting() bool {
	switch k {
	case greeting, auth, authOther, user, pass, rein, pasv, epsv, epsvAll, active, protC, protP, cwd, pwd, renameTo:
		return true
	}
	return false
}

// endsTransfer reports whether a reply during a transfer is the transfer's for certain.
func endsTransfer(code int) bool {
	switch code {
	case 226, 425, 426, 451, 452, 522, 552:
		return true
	}
	return false
}

// maxRuns bounds the runs of equal kinds among the outstanding commands. A client that pipelines asks the same of many
// files, and what needs nothing counts as one kind.
const maxRuns = 48

// queue holds the kinds of the commands without a final reply, oldest first, in runs of equal ones. A server answers in
// that order, except during a transfer.
type queue struct {
	runs    [maxRuns]run
	used    uint8  // runs
	n       uint16 // commands
	excused uint16 // of the oldest commands so many may stay without a reply
	running bool   // the oldest is a transfer that was answered by 1yz
	mark    uint16 // which 1yz; means something only with running
}

type run struct {
	Kind kind
	N    uint16
}

// push adds the newest command, unless limit are outstanding already, or too many runs. NOOP does not count: there are
// clients that send thousands during one transfer, and servers that answer none.
func (q *queue) push(k kind, limit int) bool {
	switch {
	case q.full():
		return k == noop
	case k != noop && int(q.n) >= limit && int(q.n)-q.count(noop) >= limit:
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

// full reports whether no more commands can be counted.
func (q *queue) full() bool { return q.n == math.MaxUint16 }

// oldest is the command that the next final reply belongs to; other when nothing is outstanding.
func (q *queue) oldest() kind {
	if q.used == 0 {
		return other
	}
	return q.runs[0].Kind
}

// match returns the run whose first command a final reply with this code belongs to, or -1. sure is false where no command
// has such replies and the oldest is as good as any.
func (q *queue) match(code int) (i int, sure bool) {
	first := q.oldest()
	switch {
	case q.used == 0:
		return -1, false
	case q.running && !endsTransfer(code):
		// Servers answer other commands in between: ProFTPD does them, Pure-FTPd says 500.
		if i := q.fit(1, code); i > 0 {
			return i, true
		}
		if !first.fits(code) {
			return -1, false
		}
	}
	if i := q.fit(0, code); i >= 0 {
		return i, true
	}
	if first == pasv || first == epsv || code == 227 || code == 229 || code == 234 {
		return -1, false // these succeed with their own codes only, so it is one too many for something before
	}
	return 0, false
}

// fit returns the first run, from one on, whose kind has such replies, or -1.
func (q *queue) fit(from, code int) int {
	i := slices.IndexFunc(q.runs[from:max(from, int(q.used))], func(r run) bool { return r.Kind.fits(code) })
	if i < 0 {
		return i
	}
	return from + i
}

// doubtful reports whether a final reply that is taken for run i's could as well be another command's, of which one has lasting
// effects. Servers refuse what they need not answer with codes of their own: ProFTPD says 450 to STAT.
func (q *queue) doubtful(i, code int) bool {
	lasting := q.runs[i].Kind.lasting()
	others := false
	for j, r := range q.runs[:q.used] {
		if j == i || !r.Kind.fits(code) && !(r.Kind.optional() && code >= 400) {
			continue
		}
		others = true
		lasting = lasting || r.Kind.lasting()
	}
	return others && lasting
}

// answer takes the first command of run i out, which has been answered, and with it what is older: a server answers in order,
// so those replies will never come. What may be answered during a transfer leaves the transfer as it is. It reports whether
// a command was passed over that every server answers.
func (q *queue) answer(i int) (k kind, passed bool) {
	k = q.runs[i].Kind
	if q.oldest().direction() == NoTransfer || !q.running && !k.optional() {
		passed = q.drop(i)
		i = 0
	}
	q.take(i)
	return k, passed
}

// take removes one command of run i.
func (q *queue) take(i int) {
	before := 0
	for _, r := range q.runs[:i] {
		before += int(r.N)
	}
	if before < int(q.excused) {
		q.excused--
	}
	q.running = q.running && i > 0
	q.n--
	if q.runs[i].N--; q.runs[i].N == 0 {
		q.used--
		copy(q.runs[i:], q.runs[i+1:q.used+1])
	}
}

// dropNewest removes the newest command: the server does not hear of it.
func (q *queue) dropNewest() {
	if q.used > 0 {
		q.take(int(q.used) - 1)
	}
}

// drop removes what is older than run i, and reports whether something of it should have been answered.
func (q *queue) drop(i int) (passed bool) {
	for ; i > 0; i-- {
		r := q.runs[0]
		passed = passed || !r.Kind.optional()
		q.n -= r.N
		q.excused -= min(q.excused, r.N)
		q.running = false
		q.used--
		copy(q.runs[:], q.runs[1:q.used+1])
	}
	return passed
}

// begins notes a 1yz: the first transfer without one is under way, and what is older is over. It reports whether something
// of that should have been answered.
func (q *queue) begins(code int) (passed bool) {
	for i, r := range q.runs[:q.used] {
		switch {
		case r.Kind.direction() == NoTransfer, i == 0 && q.running && r.N == 1:
			continue
		case i == 0 && q.running:
			q.take(0)
			passed = true
		default:
			passed = q.drop(i)
		}
		q.running, q.mark = true, uint16(code)
		return passed
	}
	return false
}

// repeats reports whether a reply is again the 150 of the download under way, and of no other transfer. For an upload a server may
// tell the file's name by one more (RFC 1123 section 4.1.2.9).
func (q *queue) repeats(code int) bool {
	transfers := 0
	for _, r := range q.runs[:q.used] {
		if r.Kind.direction() != NoTransfer {
			transfers += int(r.N)
		}
	}
	return code == usualMark && q.running && q.mark == usualMark && q.oldest() == download && transfers == 1
}

// usualMark is the 1yz of nearly all transfers (RFC 959 section 5.4).
const usualMark = 150

// transfer returns the direction of the oldest transfer.
func (q *queue) transfer() Direction {
	for _, r := range q.runs[:q.used] {
		if d := r.Kind.direction(); d != NoTransfer {
			return d
		}
	}
	return NoTransfer
}

// optional reports whether every outstanding command may stay without a reply.
func (q *queue) optional() bool {
	return !slices.ContainsFunc(q.runs[:q.used], func(r run) bool { return !r.Kind.optional() })
}

// calm reports whether no outstanding command is a transfer or has lasting effects.
func (q *queue) calm() bool {
	return !slices.ContainsFunc(q.runs[:q.used], func(r run) bool { return r.Kind.lasting() || r.Kind.direction() != NoTransfer })
}

// has reports whether a command of one of these kinds is outstanding.
func (q *queue) has(kinds ...kind) bool {
	return slices.ContainsFunc(q.runs[:q.used], func(r run) bool { return slices.Contains(kinds, r.Kind) })
}

func (q *queue) count(k kind) (n int) {
	for _, r := range q.runs[:q.used] {
		if r.Kind == k {
			n += int(r.N)
		}
	}
	return n
}
