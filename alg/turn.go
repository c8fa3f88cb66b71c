package alg

// Outstanding is how many commands have no final reply yet; before the greeting it is one.
func (c *Control) Outstanding() int { return int(c.kinds.n) }

// Transferring says whether the oldest of them is a transfer: only then may a client speak out of turn (RFC 959
// section 5.3 asks servers to listen for ABOR, STAT and QUIT).
func (c *Control) Transferring() bool { return c.kinds.oldest() == transfer }
