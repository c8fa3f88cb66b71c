package alg

import (
	"bytes"
	"testing"

	"ftpalg/policy"
)

// FuzzControl: whatever both sides send, in whatever pieces, pinholes only ever join the two hosts at an unprivileged
// port, at most one stands, rewrites stay inside the stream, and nothing comes after the end.
func FuzzControl(f *testing.F) {
	for _, tr := range transcripts(f) {
		var script []byte
		for _, step := range tr.Steps {
			script = append(script, byte(side(step.FromClient)), byte(len(step.Data)))
			script = append(script, step.Data[:min(len(step.Data), 255)]...)
		}
		f.Add(script, false, tr.Policy != "")
	}
	f.Add([]byte{0, 6, 22, 3, 1, 0, 1, 1, 1, 6, 22, 3, 3, 0, 1, 2}, true, false)
	f.Fuzz(func(t *testing.T, script []byte, implicit, terminated bool) {
		p := policy.AllowAll()
		client, server := tlsClientAddr, tlsServerAddr
		d := p.Decide(client.Addr(), server)
		d.Implicit = implicit
		if terminated {
			d.Action, p.Authority = policy.Terminate, policy.KeyPair{Certificate: "/ca.pem", Key: "/ca.key"}
		}
		c := begin(p, d, client, server)
		var offset [2]uint64
		var stands Pinhole
		ended := false
		for len(script) > 2 {
			from, n := Side(script[0]&1), min(int(script[1]), len(script)-2)
			b := bytes.Clone(script[2 : 2+n])
			script = script[2+n:]
			offset[from] += uint64(n)
			fx := c.Feed(now, from, b, nil)
			if ended && len(fx) > 0 {
				t.Fatalf("after the end: %q", describeAll(fx))
			}
			for _, e := range fx {
				checkEffect(t, e, offset)
				switch e.Kind {
				case OpenPinhole:
					if !stands.IsZero() {
						t.Fatalf("two pinholes: %v and %v", stands, e.Pinhole)
					}
					stands = e.Pinhole
				case ClosePinhole:
					stands = Pinhole{}
				case End:
					ended = true
				}
			}
			if stands != c.Pinhole() {
				t.Fatalf("the engine says %v, its effects %v", c.Pinhole(), stands)
			}
			if hold := c.Hold(from); uint64(hold) > offset[from] {
				t.Fatalf("holds %d bytes of %d", hold, offset[from])
			}
			if terminated && (c.Opaque(Client) || c.Opaque(Server)) {
				t.Fatal("what a front end opened is taken for closed")
			}
		}
	})
}

func checkEffect(t *testing.T, e Effect, offset [2]uint64) {
	t.Helper()
	switch e.Kind {
	case OpenPinhole:
		from, to := e.Pinhole.From.Addr(), e.Pinhole.To.Addr()
		if from == to || from != tlsClientAddr.Addr() && from != tlsServerAddr.Addr() ||
			to != tlsClientAddr.Addr() && to != tlsServerAddr.Addr() || e.Pinhole.To.Port() < firstUnprivileged {
			t.Fatalf("pinhole %+v", e.Pinhole)
		}
	case Rewrite:
		if e.Len != len(e.New) || e.Start+uint64(e.Len) > offset[e.Side] {
			t.Fatalf("rewrites %d bytes at %d with %d, of %d", e.Len, e.Start, len(e.New), offset[e.Side])
		}
	case Deny, End, Audit, ClosePinhole:
		if e.Reason == NoReason {
			t.Fatalf("%v without a reason", e.Kind)
		}
		if e.Reason.Reply() == "" && (e.Kind == Deny || e.Kind == End) {
			t.Fatalf("no reply for %v", e.Reason)
		}
	case BeginTransfer:
		if e.Direction == NoTransfer {
			t.Fatal("a transfer without a direction")
		}
	}
}

// FuzzFollower: TLS records cut at any place give the same events as whole ones.
func FuzzFollower(f *testing.F) {
	f.Add([]byte{22, 3, 1, 0, 2, 1, 1, 20, 3, 3, 0, 1, 1, 23, 3, 3, 0, 1, 9, 21, 3, 3, 0, 2, 1, 0, 'N', 'O'}, uint8(3))
	f.Fuzz(func(t *testing.T, stream []byte, size uint8) {
		whole, pieces := &follower{}, &follower{}
		_, want := whole.feed(Client, stream)
		var got event
		for rest := stream; len(rest) > 0 && got&(badRecord|backToClear) == 0; {
			n, ev := pieces.feed(Client, rest[:min(len(rest), 1+int(size))])
			got |= ev
			rest = rest[n:]
		}
		if got != want {
			t.Errorf("events %b whole, %b in pieces of %d", want, got, 1+int(size))
		}
	})
}
