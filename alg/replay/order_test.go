package replay

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/google/gopacket/layers"

	"ftpalg/alg"
	"ftpalg/policy"
)

// TestDisorder: what several interfaces or receive queues bring in the wrong order is put right.
func TestDisorder(t *testing.T) {
	lines := []string{"S: 220 ready", "C: USER a", "S: 230 in", "C: PASV", "S: 227 (198,51,100,2,195,80)", "C: LIST", "S: 150 here", "S: 226 done"}
	newTalk := func() *talk { return newTalk(t, "192.0.2.2:40000", "198.51.100.2:21").open() }
	t.Run("acknowledgements first", func(t *testing.T) {
		k := newTalk()
		for _, line := range lines {
			k.say(line).segment(line[0] == 'S', nil, "")
			n := len(k.packets)
			k.packets[n-1], k.packets[n-2] = k.packets[n-2], k.packets[n-1]
		}
		expect(t, rawFile(k.packets), pasvPinhole)
	})
	t.Run("reply before command", func(t *testing.T) {
		p := newTalk().say(lines...).packets
		p[6], p[7] = p[7], p[6] // PASV and the 227
		expect(t, rawFile(p), pasvPinhole)
	})
	t.Run("everything twice", func(t *testing.T) {
		var twice [][]byte
		for _, p := range newTalk().say(lines...).packets {
			twice = append(twice, p, p)
		}
		expect(t, rawFile(twice), pasvPinhole)
	})
	t.Run("the greeting lost", func(t *testing.T) {
		expect(t, rawFile(slices.Delete(newTalk().say(lines...).packets, 3, 4)), pasvPinhole)
	})
	t.Run("PASV lost", func(t *testing.T) {
		expect(t, rawFile(slices.Delete(newTalk().say(lines...).packets, 6, 7)), pasvPinhole)
	})
	t.Run("PASV and the reply before it lost", func(t *testing.T) {
		p := newTalk().say("S: 220 ready", "C: USER a", "S: 230 in", "C: TYPE I", "S: 200 ok", "C: PASV", "S: 227 (198,51,100,2,195,80)", "C: LIST").packets
		expect(t, rawFile(slices.Delete(p, 7, 9)), pasvPinhole)
	})
	t.Run("AUTH lost", func(t *testing.T) {
		hello := func(kind byte) string { return string(append([]byte{22, 3, 1, 0, 64, kind}, make([]byte, 63)...)) }
		k := newTalk().say("S: 220 ready", "C: AUTH TLS", "S: 234 go on").segment(true, nil, hello(1)).segment(false, nil, hello(2))
		events := expect(t, rawFile(slices.Delete(k.packets, 4, 5)))
		if last := events[len(events)-1]; last.Protection.Control != alg.TLS {
			t.Errorf("the last event is %+v", last)
		}
	})
	t.Run("the server's side only", func(t *testing.T) {
		var half [][]byte
		for _, p := range newTalk().say(lines...).packets {
			if p[12] == 198 {
				half = append(half, p)
			}
		}
		expect(t, rawFile(half), pasvPinhole)
	})
	t.Run("227 that nobody asked for", func(t *testing.T) {
		p := newTalk().say("S: 220 ready", "C: NOOP", "S: 200 ok", "S: 227 (198,51,100,2,195,80)").packets
		expect(t, rawFile(p), "deny unsolicited-reply")
	})
	t.Run("the end is still delivered", func(t *testing.T) {
		p := newTalk().say(lines...).packets
		p = append(p[:7:7], p[7]) // the 227 is the last packet, and what it acknowledges
		p = slices.Delete(p, 6, 7)
		expect(t, rawFile(p), pasvPinhole)
	})
}

// TestSamePorts: another connection between the same ports is another session, whether or not the first one's end is
// in the capture; a repeated SYN is not.
func TestSamePorts(t *testing.T) {
	first := pasv(t)
	second := newTalk(t, "192.0.2.2:40000", "198.51.100.2:21")
	second.next = [2]uint32{1200, 5200}
	second.open().say("S: 220 ready", "C: USER a", "S: 230 in", "C: EPSV", "S: 229 (|||50001|)")
	const epsvPinhole = "EPSV 192.0.2.2 198.51.100.2:50001"
	expect(t, rawFile(slices.Concat(first.packets, second.packets)), pasvPinhole, "end connection-closed", epsvPinhole)

	repeated := slices.Concat(first.packets[:1], first.packets[:1], first.packets[1:3], first.packets[:1], first.packets[3:])
	expect(t, rawFile(repeated), pasvPinhole)

	fin := func(h *layers.TCP) { h.FIN = true }
	first.segment(true, fin, "").segment(false, fin, "").segment(true, nil, "")
	expect(t, rawFile(slices.Concat(first.packets, second.packets)), pasvPinhole, "end connection-closed", epsvPinhole)
}

// TestOtherPorts: a control connection anywhere is known by its greeting, and by nothing that comes later.
func TestOtherPorts(t *testing.T) {
	at := func(port string) *talk { return newTalk(t, "192.0.2.2:40000", "198.51.100.2:"+port).open() }
	reply := "S: 227 (198,51,100,2,195,80)"
	expect(t, rawFile(at("2121").say("S: 220-Welcome", "S: 220 ready", "C: USER a", "S: 230 in", "C: PASV", reply).packets), pasvPinhole)
	expect(t, rawFile(at("2121").segment(false, nil, "220 ").say("S: ready", "C: USER a", "S: 230 in", "C: PASV", reply).packets), pasvPinhole)
	expect(t, rawFile(at("2525").say("S: 220 mail", "C: PASV", reply).packets))
	expect(t, rawFile(at("8080").say("C: GET", "S: 220 ready", "C: PASV", reply).packets))
	expect(t, rawFile(at("8080").say("S: HELLO", "S: 220 ready", "C: PASV", reply).packets))
}

// TestFragments: packets in fragments are put together, in any order; fragments that overlap make nothing.
func TestFragments(t *testing.T) {
	for name, c := range map[string]struct {
		talk     *talk
		fragment func(p []byte, from, to int, more bool) []byte
		header   int
		want     string
	}{
		"IPv4": {pasv(t), fragment4, ipv4Header, pasvPinhole},
		"IPv6": {epsv6(t), fragment6, ipv6Header, epsv6Pinhole},
	} {
		t.Run(name, func(t *testing.T) {
			whole := c.talk.packets
			last := whole[len(whole)-1]
			n := len(last) - c.header
			a, b, z := c.fragment(last, 0, 16, true), c.fragment(last, 16, 24, true), c.fragment(last, 24, n, false)
			replay := func(fragments ...[]byte) []byte {
				return rawFile(append(slices.Clone(whole[:len(whole)-1]), fragments...))
			}
			expect(t, replay(a, b, z), c.want)
			expect(t, replay(z, b, a), c.want)
			expect(t, replay(b, b, z, z, a, a), c.want)
			expect(t, replay(a, z))
			expect(t, replay(a, c.fragment(last, 8, 24, true), b, z))
			expect(t, replay(a, c.fragment(last, 16, 23, true), z))
		})
	}
}

func fragment4(p []byte, from, to int, more bool) []byte {
	to = min(to, len(p)-ipv4Header)
	f := slices.Concat(p[:ipv4Header], p[ipv4Header+from:ipv4Header+to])
	word := uint16(from / 8)
	if more {
		word |= 0x2000
	}
	binary.BigEndian.PutUint16(f[6:], word)
	binary.BigEndian.PutUint16(f[2:], uint16(len(f)))
	return f
}

// fragment6 puts a hop-by-hop header before the fragment header.
func fragment6(p []byte, from, to int, more bool) []byte {
	to = min(to, len(p)-ipv6Header)
	word := uint16(from)
	if more {
		word |= 1
	}
	f := slices.Concat(p[:ipv6Header], []byte{ipv6Fragment, 0, 1, 4, 0, 0, 0, 0}, []byte{p[6], 0},
		binary.BigEndian.AppendUint16(nil, word), []byte{1, 2, 3, 4}, p[ipv6Header+from:ipv6Header+to])
	f[6] = ipv6HopByHop
	binary.BigEndian.PutUint16(f[4:], uint16(len(f)-ipv6Header))
	return f
}

// TestDenied: a control connection that the policy does not allow is told once, whatever is said in it, and a refusal
// always has a session and a text.
func TestDenied(t *testing.T) {
	const text = `version: 1
servers:
  - name: files
    addresses: [198.51.100.2]
  - name: another
    addresses: [203.0.113.2]
rules:
  - name: nobody to files
    to: files
    action: deny
`
	p, err := policy.Parse("policy.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	lines := []string{"S: 220 ready", "C: USER lab", "S: 331 password", "C: PASV", "S: 227 (198,51,100,2,195,80)"}
	for _, server := range []string{"198.51.100.2:21", "198.51.100.2:2121"} {
		var out bytes.Buffer
		file := rawFile(newTalk(t, "192.0.2.2:40000", server).open().say(lines...).packets)
		if err := Run(bytes.NewReader(file), p, JSON(&out)); err != nil {
			t.Error(err)
		}
		want := `"session":0,"client":"192.0.2.2:40000","server":"` + server + `","reason":"policy-denied","text":""}`
		if got := out.String(); strings.Count(got, `"deny"`) != 1 || !strings.Contains(got, want) {
			t.Errorf("got %s\nwant one refusal, %s", got, want)
		}
	}
}
