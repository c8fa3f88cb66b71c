package lab

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/textproto"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// held is the client that arranges a data connection and then holds still, so that the pinhole stands open for as long
// as it is probed. The other clients are too quick for that.
var held = ClientKind{Name: "held", cannot: canAll}

// control is a control connection of our own.
type control struct {
	*textproto.Conn
	conn net.Conn
}

func newControl(conn net.Conn) *control { return &control{textproto.NewConn(conn), conn} }

// dial opens a control connection from the client host, logs in and, where the scenario has TLS, protects the data.
func (s *Stage) dial(scenario Scenario) (*control, error) {
	config, err := s.tlsConfig(scenario)
	if err != nil {
		return nil, err
	}
	return s.dialWith(scenario, config)
}

// dialWith is dial with TLS as the caller wants it.
func (s *Stage) dialWith(scenario Scenario, config *tls.Config) (*control, error) {
	address := s.nat.reach(scenario).String()
	c := &control{}
	err := s.Lab.InNS(s.nat.client(), func() (err error) {
		c.conn, err = net.DialTimeout("tcp", address, serverStart)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("control connection: %w", err)
	}
	if err := errors.Join(c.conn.SetDeadline(time.Now().Add(sessionTimeout)), s.login(c, scenario, config)); err != nil {
		return nil, errors.Join(err, c.conn.Close())
	}
	return c, nil
}

func (s *Stage) login(c *control, scenario Scenario, config *tls.Config) error {
	c.Conn = textproto.NewConn(c.conn)
	if scenario.Protection == Implicit {
		c.upgrade(config)
	}
	if _, _, err := c.ReadResponse(220); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	auth := map[Protection]string{Explicit: "AUTH TLS", AuthSSL: "AUTH SSL", CCC: "AUTH TLS"}[scenario.Protection]
	if auth != "" {
		if _, err := c.do(234, auth); err != nil {
			return err
		}
		c.upgrade(config)
	}
	if _, err := c.do(331, "USER "+User); err != nil {
		return err
	}
	if _, err := c.do(230, "PASS "+Password); err != nil {
		return err
	}
	if scenario.Protection == Plain {
		return nil
	}
	if _, err := c.do(200, "PBSZ 0"); err != nil {
		return err
	}
	_, err := c.do(200, "PROT "+scenario.Level())
	return err
}

func (c *control) upgrade(config *tls.Config) {
	c.conn = tls.Client(c.conn, config)
	c.Conn = textproto.NewConn(c.conn)
}

func (s *Stage) tlsConfig(scenario Scenario) (*tls.Config, error) {
	ca, err := os.ReadFile(s.Server.CA)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	config := &tls.Config{RootCAs: roots, ServerName: s.nat.reach(scenario).Addr().String()}
	if scenario.TLS12() {
		config.MaxVersion = tls.VersionTLS12
	}
	return config, nil
}

// do sends a command and returns the text of the reply, which has to have the code.
func (c *control) do(code int, command string) (string, error) {
	if err := c.PrintfLine("%s", command); err != nil {
		return "", fmt.Errorf("%s: %w", command, err)
	}
	_, text, err := c.ReadResponse(code)
	if err != nil {
		err = fmt.Errorf("%s: %w", command, err)
	}
	return text, err
}

// arrange has a data connection announced and returns where it has to go.
func (c *control) arrange(scenario Scenario) (netip.AddrPort, error) {
	return c.arrangeFor(scenario, Addr(Client, scenario.Family))
}

// arrangeFor is arrange for a client with another address.
func (c *control) arrangeFor(scenario Scenario, client netip.Addr) (netip.AddrPort, error) {
	port := ClientPorts.First
	switch scenario.Mode {
	case PASV:
		text, err := c.do(227, "PASV")
		if err != nil {
			return netip.AddrPort{}, err
		}
		fields := strings.Split(strings.Trim(text[strings.IndexByte(text, '(')+1:], "). "), ",")
		return target(scenario, fields[len(fields)-2:])
	case EPSV:
		text, err := c.do(229, "EPSV")
		if err != nil {
			return netip.AddrPort{}, err
		}
		return target(scenario, strings.Split(text, "|")[3:4])
	case PORT:
		_, err := c.do(200, fmt.Sprintf("PORT %s,%d,%d", strings.ReplaceAll(client.String(), ".", ","), port>>8, port&0xff))
		return netip.AddrPortFrom(client, port), err
	default:
		family := map[Family]int{IPv4: 1, IPv6: 2}[scenario.Family] // RFC 2428, section 2
		_, err := c.do(200, fmt.Sprintf("EPRT |%d|%s|%d|", family, client, port))
		return netip.AddrPortFrom(client, port), err
	}
}

// target makes the server's address from the digits of a port, in base 256 if there are two.
func target(scenario Scenario, digits []string) (netip.AddrPort, error) {
	port := 0
	for _, digit := range digits {
		n, err := strconv.Atoi(digit)
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("the server's port: %w", err)
		}
		port = port<<8 + n
	}
	return netip.AddrPortFrom(Addr(Server, scenario.Family), uint16(port)), nil
}

// hold is what the client named held does in place of a transfer. The promised port is used by a probe, which has to be
// answered, and only then has the session one pinhole behind it.
func (s *Stage) hold(ctx context.Context, scenario Scenario, mark int, result *Result) error {
	c, err := s.dial(scenario)
	if err != nil {
		return err
	}
	defer c.conn.Close()
	promised, err := c.arrange(scenario)
	if err != nil {
		return err
	}
	if !scenario.opaque() {
		err = s.holdPlain(ctx, scenario, mark, promised, result)
	} else {
		err = s.holdOpaque(scenario, promised, result)
	}
	_, quitErr := c.do(221, "QUIT")
	return errors.Join(err, quitErr)
}

// holdPlain probes a pinhole that ftpalg read of: only the promised host reaches it, and that host nothing else.
func (s *Stage) holdPlain(ctx context.Context, scenario Scenario, mark int, promised netip.AddrPort, result *Result) error {
	ctx, cancel := context.WithTimeout(ctx, serverStart)
	defer cancel()
	event, err := s.Daemon.WaitEvent(ctx, mark, func(e Event) bool { return e.Msg == msgPinhole })
	if err != nil {
		return err
	}
	if event.To != promised {
		err = fmt.Errorf("a pinhole to %s, not to %s", event.To, promised)
	}
	way := scenario.direction()
	elsewhere := Targets(promised.Addr(), way.never)
	err = errors.Join(err, s.refused(
		probe{way.stranger, append(slices.Clone(elsewhere), promised), &result.Stranger},
		probe{way.initiator, elsewhere, &result.Beyond}))
	return errors.Join(err, s.reaches(way.initiator, []netip.AddrPort{promised}, 1, &result.Promised))
}

// holdOpaque probes a control connection that ftpalg cannot read. It has one credit now, which is good for one SYN of
// the promised host to any port of the range: a scan gets one answer, and a second scan gets none.
func (s *Stage) holdOpaque(scenario Scenario, promised netip.AddrPort, result *Result) error {
	way := scenario.direction()
	elsewhere := Targets(promised.Addr(), way.never)
	err := s.refused(probe{way.stranger, append(slices.Clone(elsewhere), promised), &result.Stranger})
	err = errors.Join(err, s.reaches(way.initiator, elsewhere, 1, &result.Promised))
	return errors.Join(err, s.refused(probe{way.initiator, append(slices.Clone(elsewhere), promised), &result.Beyond}))
}

// reaches probes and fails unless the wanted number of probes was answered.
func (s *Stage) reaches(from Host, targets []netip.AddrPort, want int, noted *ProbeResult) error {
	var err error
	*noted, err = s.Lab.Probe(from, targets)
	if err == nil && len(noted.Answered) != want {
		err = fmt.Errorf("%s reached %s, want %d", from, noted, want)
	}
	return err
}
