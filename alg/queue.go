package alg

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
	transfer
	protC
	protP
	cwd
	cdup
	pwd
	denied
)

// queue holds the kinds of the commands without a final reply, oldest first. A server answers in that order, except
// for STAT during a transfer (RFC 959 section 4.1.3).
type queue struct {
	ring [maxOutstanding]kind
	head uint8
	n    uint8
}

// push adds the newest command, unless limit are outstanding already.
func (q *queue) push(k kind, limit int) bool {
	if int(q.n) >= min(limit, maxOutstanding) {
		return false
	}
	q.ring[(q.head+q.n)%maxOutstanding] = k
	q.n++
	return true
}

// oldest is the command that the next final reply belongs to; other when nothing is outstanding.
func (q *queue) oldest() kind { return q.at(0) }

func (q *queue) at(i uint8) kind {
	if i >= q.n {
		return other
	}
	return q.ring[(q.head+i)%maxOutstanding]
}

func (q *queue) pop() {
	if q.n > 0 {
		q.head = (q.head + 1) % maxOutstanding
		q.n--
	}
}

// popStat takes the oldest STAT out that is not at the head.
func (q *queue) popStat() bool {
	for i := uint8(1); i < q.n; i++ {
		if q.at(i) == stat {
			for ; i > 0; i-- {
				q.ring[(q.head+i)%maxOutstanding] = q.at(i - 1)
			}
			q.pop()
			return true
		}
	}
	return false
}

// skipTo drops what is older than the first k, if there is one.
func (q *queue) skipTo(k kind) bool {
	for i := range q.n {
		if q.at(i) == k {
			q.head, q.n = (q.head+i)%maxOutstanding, q.n-i
			return true
		}
	}
	return false
}
