package inspect

import (
	"bytes"
	"testing"

	"github.com/google/gopacket/layers"

	"ftpalg/alg"
	"ftpalg/policy"
)

// FuzzStream sends a dialogue's client side as segments that start, end, repeat and overlap as the script says, with
// other content where it overlaps. Whatever happens, each packet gets exactly one verdict, and what arrives is
// what was sent first, or overwritten.
func FuzzStream(f *testing.F) {
	f.Add([]byte{0, 5, 5, 9, 0, 40, 3, 2})
	f.Add([]byte{30, 30, 0, 30, 10, 40})
	commands := []byte("NOOP\r\nTYPE I\r\nRETR a-file-with-a-name\r\nSTOR another\r\nQUIT\r\n")
	f.Fuzz(func(t *testing.T, script []byte) {
		w := newWire(t, policy.AllowAll(), clientAddr, serverAddr)
		w.say(alg.Server, []byte("220 ready\r\n"))
		touched := make([]bool, len(commands))
		first := bytes.Clone(commands)
		for i := 0; i+1 < len(script) && i < 200; i += 2 {
			start := int(script[i]) % len(commands)
			end := min(start+1+int(script[i+1])%40, len(commands))
			payload := bytes.Clone(commands[start:end])
			for k := range payload {
				if touched[start+k] {
					payload[k] = 'g' // other content than what came first
				}
				touched[start+k] = true
			}
			w.send(alg.Client, start, payload, func(tcp *layers.TCP) { tcp.PSH = true })
		}
		w.in.End(clock, w.key, 0)
		w.settled()
		for i, c := range w.receivers[alg.Client].stream() {
			if c != first[i] && c != 'X' { // X: a line that was never completed, and given up
				t.Errorf("the server got %q", w.receivers[alg.Client].stream())
				break
			}
		}
	})
}
