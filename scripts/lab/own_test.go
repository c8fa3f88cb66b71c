package lab

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// TestGatewaysOwnFTP holds the manual to what it says of FTP of the gateway itself: it is not inspected. Of a client on the gateway
// ftpalg reads the server's replies alone: they pass where a rule names the gateway, and else not. A server there that the policy
// does not list is none of ftpalg's.
func TestGatewaysOwnFTP(t *testing.T) {
	requireRoot(t)
	t.Parallel()
	l := newLab(t)
	for _, tool := range []string{"iptables", "ip6tables"} {
		for _, chain := range []string{"INPUT", "OUTPUT"} {
			if _, err := l.Run(t.Context(), Gateway, tool, "-w", "-P", chain, "ACCEPT"); err != nil {
				t.Fatal(err)
			}
		}
	}
	const deny = "commands: {deny: [SITE]}"
	unnamed := strings.Replace(Policy(), "action: inspect\n", "action: inspect\n    "+deny+"\n", 1)
	named := strings.Replace(unnamed, "addresses: [192.0.2.0/24, ", "addresses: [192.0.2.0/24, 198.51.100.1, ", 1)
	gateway := netip.AddrPortFrom(netip.MustParseAddr("198.51.100.1"), ExplicitPort)
	server := netip.AddrPortFrom(Addr(Server, IPv4), ExplicitPort)
	for _, c := range []struct {
		name, policy string
		client, at   Host
		to           netip.AddrPort
		passes       bool
	}{
		{"a client that no rule names", unnamed, Gateway, Server, server, false},
		{"a client that a rule names", named, Gateway, Server, server, true},
		{"a server that is not listed", unnamed, Client, Gateway, gateway, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			startFTPAlg(t, l, c.policy)
			listener := listen(t, l, c.at, c.to)
			defer listener.Close()
			e := &ends{client: dial(t, l, c.client, c.to)}
			var err error
			if e.server, err = listener.AcceptTCP(); err != nil {
				t.Fatal(err)
			}
			defer e.close()
			for _, x := range []struct{ reply, command string }{{"220 ready", "USER x"}, {"331 password", "PASS x"}, {"230 in", "SITE x"}, {"200 done", "QUIT"}} {
				fmt.Fprintf(e.server, "%s\r\n", x.reply)
				_ = e.client.SetReadDeadline(time.Now().Add(patience))
				reply := make([]byte, len(x.reply)+2)
				if _, err := io.ReadFull(e.client, reply); c.passes && (err != nil || string(reply) != x.reply+"\r\n") {
					t.Errorf("%q arrives as %q, %v", x.reply, reply, err)
				} else if !c.passes && strings.Contains(string(reply), x.reply) {
					t.Errorf("%q passes", x.reply)
				}
				fmt.Fprintf(e.client, "%s\r\n", x.command)
				if text, err := hear(e.server, len(x.command)+2, patience); err != nil || text != x.command+"\r\n" {
					t.Errorf("%q arrives as %q, %v", x.command, text, err)
				}
			}
		})
	}
}
