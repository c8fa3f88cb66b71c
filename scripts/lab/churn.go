package lab

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"

	"ftpalg/conntrack"
)

const (
	// startingFor is how long after its start ftpalg may be killed while it starts: it takes about that long.
	startingFor = 150 * time.Millisecond
	// churnPatience bounds each step of a session: a packet that was dropped is sent again within it.
	churnPatience = 20 * time.Second
)

// others are rules, routes and tables of other owners on the gateway: one rule in each chain that ftpalg has a jump in.
var others = []string{
	"iptables -w -t raw -A PREROUTING -p udp --dport 9 -j DROP", "iptables -w -t mangle -A PREROUTING -p udp --dport 9 -j DROP",
	"iptables -w -t nat -A POSTROUTING -s 203.0.113.0/24 -j MASQUERADE", "iptables -w -A INPUT -p udp --dport 9 -j DROP",
	"iptables -w -t mangle -A FORWARD -p udp --dport 9 -j DROP", "iptables -w -A FORWARD -p udp --dport 9 -j DROP", "iptables -w -A OUTPUT -p udp --dport 9 -j DROP",
	"ip6tables -w -t raw -A PREROUTING -p udp --dport 9 -j DROP", "ip6tables -w -t mangle -A PREROUTING -p udp --dport 9 -j DROP",
	"ip6tables -w -t mangle -A FORWARD -p udp --dport 9 -j DROP", "ip6tables -w -A INPUT -p udp --dport 9 -j DROP", "ip6tables -w -A FORWARD -p udp --dport 9 -j DROP",
	"ip6tables -w -A OUTPUT -p udp --dport 9 -j DROP", "ip6tables -w -t nat -A POSTROUTING -s 2001:db8:9::/64 -j MASQUERADE",
	"nft add table inet other", "nft add chain inet other input { type filter hook input priority 10 ; }",
	"nft add rule inet other input udp dport 9 counter drop",
	"ip rule add fwmark 0x7 lookup 77", "ip route add blackhole 203.0.113.0/24 table 77",
}

// counted finds what changes in a ruleset by itself: counters and dates.
var counted = regexp.MustCompile(`(?m)\[\d+:\d+\]|packets \d+ bytes \d+|^#.*$`)

// belongings is all that anybody has in the gateway's kernel and that ftpalg also has things in.
func (l *Lab) belongings(ctx context.Context) (string, error) {
	var all strings.Builder
	for _, command := range []string{"iptables-save", "ip6tables-save", "nft list ruleset", "ip rule", "ip -6 rule",
		"ip route show table all", "ip -6 route show table all", "conntrack -L expect"} {
		argv := strings.Fields(command)
		out, err := l.Run(ctx, Gateway, argv[0], argv[1:]...)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&all, "== %s\n%s", command, counted.ReplaceAllString(out, ""))
	}
	return all.String(), nil
}

// churnPolicy has control connections carry ftpalg's own helper where the kernel knows such, so that it would be seen if it were
// left behind. The masquerade among the others would choose the kernel's.
var churnPolicy = sync.OnceValue(func() string {
	if conntrack.RegisterOwnHelper() != nil {
		return Policy()
	}
	_ = conntrack.RemoveOwnHelper() // it was to be tried
	return Policy() + "helper: " + conntrack.OwnHelper + "\n"
})

// Churn starts and ends ftpalg so many times under live sessions, most often by kill -9 at a random point, and compares what
// else is in the gateway's kernel whenever ftpalg's rules are gone. A seed repeats the points.
func Churn(ctx context.Context, config Config, rounds int, seed uint64) (err error) {
	random := rand.New(rand.NewPCG(seed, 0))
	pureFTPd := Servers[2] // it lets data connections have any TLS session
	s, err := newStage(ctx, pureFTPd, config, func(s *Stage, ctx context.Context) error {
		return errors.Join(s.Lab.each(ctx, Gateway, others...), s.acceptMarked(ctx))
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	before, err := s.Lab.belongings(ctx)
	if err != nil {
		return err
	}
	if err := s.Restart(ctx, Closed, churnPolicy()); err != nil {
		return err
	}
	var live []*churned
	for _, scenario := range []Scenario{{Mode: PASV, Family: IPv4, Protection: Plain}, {Mode: EPSV, Family: IPv6, Protection: Explicit}} {
		c := &churned{stage: s, scenario: scenario}
		if c.control, err = s.dial(scenario); err != nil {
			return err
		}
		defer c.conn.Close()
		live = append(live, c)
	}
	if err := os.WriteFile(s.Server.File("down.bin"), []byte(strings.Repeat("contents ", 10000)), 0o644); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	for round := range rounds {
		if err := s.churn(ctx, random, live, before); err != nil {
			return fmt.Errorf("round %d of seed %d: %w", round+1, seed, err)
		}
	}
	for _, c := range live {
		if _, err := c.do(221, "QUIT"); err != nil {
			return err
		}
		if err := errors.Join(c.conn.Close(), s.waitClosed(c.scenario, 0)); err != nil {
			return err
		}
	}
	if err := errors.Join(s.Daemon.Stop(), s.same(ctx, before)); err != nil {
		return err
	}
	if _, err := s.Lab.Run(ctx, Gateway, s.config.Binary, "rules", "--remove"); err != nil {
		return err
	}
	if there, err := conntrack.HasOwnHelper(); err != nil || there {
		return errors.Join(err, errors.New("ftpalg's conntrack helper is left, and no connection carries it"))
	}
	return nil
}

// churn is one round. It begins and ends with a running ftpalg.
func (s *Stage) churn(ctx context.Context, random *rand.Rand, live []*churned, before string) error {
	c := live[random.IntN(len(live))]
	switch random.IntN(5) {
	case 0: // an orderly end
		if err := errors.Join(s.Daemon.Stop(), s.same(ctx, before)); err != nil {
			return err
		}
	case 1: // its end while a command waits for its reply
		if err := c.PrintfLine("NOOP"); err != nil {
			return err
		}
		s.kill()
		c.owed = 200
	case 2: // between an announcement and its connection
		if err := c.fetch(s.kill); err != nil {
			return fmt.Errorf("killed within a transfer: %w", err)
		}
	case 3: // and its rules are taken away by hand
		s.kill()
		if _, err := s.Lab.Run(ctx, Gateway, s.config.Binary, "rules", "--remove", "--policy", s.Lab.Path("policy.yaml")); err != nil {
			return err
		}
	case 4: // and that of the next one while it starts
		s.kill()
		if err := s.killStarting(ctx, time.Duration(random.Int64N(int64(startingFor)))); err != nil {
			return err
		}
	}
	if err := s.Restart(ctx, Closed, churnPolicy()); err != nil {
		return err
	}
	for _, c := range live {
		if err := c.fetch(nil); err != nil {
			return fmt.Errorf("%s session: %w", c.scenario.Protection, err)
		}
	}
	return nil
}

// kill ends ftpalg as a crash does.
func (s *Stage) kill() {
	_ = s.Daemon.Signal(syscall.SIGKILL) // it may have ended by itself, which is the same
	<-s.Daemon.Exited()
}

// killStarting starts ftpalg and kills it after a moment.
func (s *Stage) killStarting(ctx context.Context, after time.Duration) error {
	p, err := s.Lab.Start(ctx, Gateway, s.config.Binary, "run", "--policy", s.Lab.Path("policy.yaml"), "--socket", s.Lab.Path("ftpalg.sock"))
	if err != nil {
		return err
	}
	select {
	case <-time.After(after):
	case <-p.Exited():
	}
	_ = p.Signal(syscall.SIGKILL)
	<-p.Exited()
	return nil
}

// same fails unless the gateway's kernel has what it had.
func (s *Stage) same(ctx context.Context, before string) error {
	after, err := s.Lab.belongings(ctx)
	if err == nil && after != before {
		err = fmt.Errorf("when ftpalg's rules are gone there is\n%s\nand there was\n%s", after, before)
	}
	return err
}

// churned is a session that has to live through all rounds.
type churned struct {
	*control
	stage    *Stage
	scenario Scenario
	owed     int // the code of a reply that has not been read yet
}

// fetch downloads a file. between, if any, comes behind the announcement of the data connection.
func (c *churned) fetch(between func()) error {
	if err := c.conn.SetDeadline(time.Now().Add(churnPatience)); err != nil {
		return err
	}
	if c.owed != 0 {
		if _, _, err := c.ReadResponse(c.owed); err != nil {
			return err
		}
		c.owed = 0
	}
	at, err := c.arrange(c.scenario)
	if err != nil {
		return err
	}
	if between == nil {
		return c.retrieve(at.String())
	}
	between()
	// Nobody reads its commands now: they wait for the next one.
	if err := c.stage.Restart(context.Background(), Closed, churnPolicy()); err != nil {
		return err
	}
	if c.scenario.opaque() { // the credit has gone with the one before, as it must: the client asks again
		if at, err = c.arrange(c.scenario); err != nil {
			return err
		}
	}
	return c.retrieve(at.String())
}

// retrieve is the rest of a download.
func (c *churned) retrieve(at string) error {
	if err := c.PrintfLine("RETR down.bin"); err != nil {
		return err
	}
	var data net.Conn
	err := c.stage.Lab.InNS(Client, func() (err error) {
		data, err = net.DialTimeout("tcp", at, churnPatience)
		return err
	})
	if err != nil {
		return err
	}
	defer data.Close()
	if c.scenario.protectsData() {
		config, err := c.stage.tlsConfig(c.scenario)
		if err != nil {
			return err
		}
		data = tls.Client(data, config)
	}
	if err := data.SetDeadline(time.Now().Add(churnPatience)); err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, data)
	if err != nil || n != int64(len("contents "))*10000 {
		return fmt.Errorf("%d bytes arrived: %w", n, err)
	}
	for _, code := range []int{150, 226} {
		if _, _, err := c.ReadResponse(code); err != nil {
			return err
		}
	}
	return nil
}
