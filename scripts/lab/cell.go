package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// contrastTimeout bounds a session through one of the guards that ftpalg is compared with, where many hang.
const contrastTimeout = 3 * time.Second

// Announce is which address a server gives in the reply 227.
type Announce string

// What servers announce.
const (
	OwnAddress Announce = ""       // its own, which the client may not be able to reach
	ZeroAddr   Announce = "zero"   // 0.0.0.0
	PublicAddr Announce = "public" // the address that clients reach it at: what servers behind NAT are told to say
)

// Cell is one cell of the NAT matrix.
type Cell struct {
	NAT      NAT
	Guard    Guard
	Announce Announce
	Scenario
}

// String returns the cell's name.
func (c Cell) String() string {
	name := []string{c.NAT.Name, string(c.Guard)}
	if c.Announce != OwnAddress {
		name = append(name, string(c.Announce))
	}
	return strings.Join(append(name, c.Scenario.String()), "/")
}

// Lane names what cells have in common that can share a lab.
func (c Cell) Lane() string {
	return strings.Join([]string{c.NAT.Name, string(c.Guard), string(c.Announce), c.Server.Name}, "/")
}

// Cells returns the NAT matrix. Cells of one lane follow one another.
func Cells() (all []Cell) {
	for _, nat := range NATs {
		for _, server := range Servers {
			for _, guard := range []Guard{Bare, Kernel, Static, Ours} {
				cell := Cell{NAT: nat, Guard: guard, Scenario: Scenario{Server: server, Family: IPv4}}
				all = append(all, cell.inEach([]Mode{PASV, EPSV, PORT, EPRT}, Clients...)...)
				if guard == Ours {
					all = append(all, cell.beside()...)
				}
			}
			all = append(all, announcing(nat, server)...)
		}
	}
	return all
}

// beside returns the cells over IPv6, which is not translated: with each client without NAT, with two beside it. Behind hairpin
// NAT client and server are neighbours.
func (c Cell) beside() []Cell {
	clients := Clients
	switch {
	case c.NAT.hairpin:
		return nil
	case c.NAT.Name != NATs[0].Name:
		clients = []ClientKind{Clients[2], held}
	}
	c.Family = IPv6
	return c.inEach([]Mode{EPSV, EPRT}, clients...)
}

// announcing returns the cells in which the server says something else than its own address, to clients that believe it.
func announcing(nat NAT, server ServerKind) (all []Cell) {
	if len(nat.public) == 0 {
		return nil
	}
	for _, announce := range []Announce{ZeroAddr, PublicAddr} {
		for _, guard := range []Guard{Bare, Ours} {
			cell := Cell{NAT: nat, Guard: guard, Announce: announce, Scenario: Scenario{Server: server, Family: IPv4}}
			all = append(all, cell.inEach([]Mode{PASV}, Clients[1], Credulous)...)
		}
	}
	return all
}

// inEach returns a cell with each data path that its guard knows, each protection, each of some modes and of some clients.
func (c Cell) inEach(modes []Mode, clients ...ClientKind) (all []Cell) {
	paths := []DataPath{Closed}
	if c.Guard == Ours {
		paths = append(paths, Auto)
	}
	for _, c.Data = range paths {
		for _, c.Protection = range []Protection{Plain, Explicit, Implicit} {
			for _, c.Mode = range modes {
				for _, c.Client = range clients {
					all = append(all, c.withAuth())
				}
			}
		}
	}
	return all
}

// withAuth gives curl, which sends AUTH SSL first, to servers that know it.
func (c Cell) withAuth() Cell {
	if c.Client.cannot(c.Scenario) != "" && c.Client.Name == "curl" {
		c.Protection = AuthSSL
	}
	return c
}

// Control names the row's protection: AUTH SSL and AUTH TLS are the same to the table.
func (c Cell) Control() Protection {
	if c.Protection == AuthSSL {
		return Explicit
	}
	return c.Protection
}

// NotPossible returns why no gateway can do it that has no key, or nothing. Whether it is so is tried: see Verdicts.
func (c Cell) NotPossible() string {
	nat, hidden := c.NAT.of(c.Family), c.Protection != Plain && c.Data == Closed
	behind := len(nat.public) > 0 && c.Mode == PASV && c.Client.believes()
	switch {
	case hidden && c.Mode.Active() && nat.masks:
		return "the client's own address stands in " + string(c.Mode) + " inside TLS, and nobody there can reach it"
	case hidden && behind && c.Announce == OwnAddress:
		return "the server's own address stands in 227 inside TLS, and " + c.Client.Name + " believes it"
	case hidden && behind && c.Announce == ZeroAddr && c.Client.Name == Credulous.Name:
		return "0.0.0.0 stands in 227 inside TLS, and the client believes it"
	}
	return ""
}

func (c Cell) properties() []string {
	return []string{
		c.NAT.Name, c.Server.Name, c.Client.Name, string(c.Control()) + string(c.Data), string(c.Mode) + c.Family.String(), string(c.Announce),
	}
}

// certain leaves out what is there for comparison.
func (c Cell) certain() bool { return c.Guard == Ours && c.NotPossible() == "" && c.Scenario.certain() }

// announced is the address that the server says, if not its own. The static recipe includes that it says the public one.
func (c Cell) announced() (at netip.Addr) {
	switch {
	case c.Announce == ZeroAddr:
		at = netip.IPv4Unspecified()
	case len(c.NAT.public) > 0 && (c.Announce == PublicAddr || c.Guard == Static):
		at = c.NAT.public[len(c.NAT.public)-1]
	}
	return at
}

// NATStage is a stage for the cells of one lane.
type NATStage struct {
	*Stage
	watch *watch
}

// NewNATStage builds a lab for a cell and all others of its lane.
func NewNATStage(ctx context.Context, c Cell, config Config) (*NATStage, error) {
	return newNATStage(ctx, c, config, func(s *Stage, ctx context.Context) error {
		if err := s.Lab.translate(ctx, c.NAT); err != nil {
			return err
		}
		return c.Guard.install(ctx, s)
	})
}

// newNATStage is NewNATStage with a gateway of the caller's making.
func newNATStage(ctx context.Context, c Cell, config Config, gateway func(*Stage, context.Context) error) (*NATStage, error) {
	n := &NATStage{}
	s, err := newStage(ctx, c.Server.with(Setup{Announce: c.announced()}), config, func(s *Stage, ctx context.Context) (err error) {
		s.nat = c.NAT
		if n.watch, err = s.Lab.watchExpectations(ctx); err != nil {
			return err
		}
		return gateway(s, ctx)
	})
	n.Stage = s
	return n, err
}

// CellResult is what came of a cell.
type CellResult struct {
	NotApplicable string // why client and server do not do it anywhere
	Err           error  // what failed
	Windows       []Window
	Strangers     ProbeResult   // what third hosts tried, on either side, and which answered
	Session       time.Duration // how long the client ran
	Log           []Event       // what ftpalg logged
}

// PortSeconds is for how long how many ports were reachable in the session.
func (r CellResult) PortSeconds(c Cell) (sum float64) {
	if c.Guard == Static {
		open := PolicyPassive
		if c.Mode.Active() {
			open = highPorts
		}
		return float64(open.Count()) * r.Session.Seconds()
	}
	for _, w := range r.Windows {
		sum += w.PortSeconds()
	}
	return sum
}

// RunCell runs a cell.
func (s *NATStage) RunCell(ctx context.Context, c Cell) (result CellResult) {
	result.NotApplicable = c.NotApplicable()
	if result.NotApplicable == "" && c.Doubted() {
		result.NotApplicable = "curl 7.88 leaves data connections of active FTPS without TLS"
	}
	if result.NotApplicable == "" && c.Holds() && c.Guard == Bare {
		result.NotApplicable = "there is no filter to probe"
	}
	if result.NotApplicable != "" {
		return result
	}
	if c.Guard == Ours {
		if result.Err = s.carry(ctx, c.Data, c.Start); result.Err != nil {
			return result
		}
	}
	mark, logged := s.watch.mark(), 0
	if s.Daemon != nil {
		logged = s.Daemon.Mark()
	}
	if c.Holds() {
		result.Err = s.holdBehindNAT(ctx, c, mark, &result)
	} else {
		result.Err = s.session(ctx, c, mark, &result)
	}
	s.account(c, mark, &result)
	if s.Daemon != nil && result.Err != nil {
		result.Log = s.Daemon.Since(logged)
	}
	return result
}

// session runs a real client, and lets third hosts try what the kernel expects meanwhile.
func (s *NATStage) session(ctx context.Context, c Cell, mark int, result *CellResult) error {
	timeout := contrastTimeout
	if c.Guard == Ours {
		timeout = sessionTimeout
	}
	probing, cancel := context.WithCancel(ctx)
	defer cancel()
	probed := make(chan error, 1)
	go func() { probed <- s.probeWindow(probing, c, mark, result) }()
	start := time.Now()
	err := s.transfer(ctx, c.Scenario, timeout)
	result.Session = time.Since(start)
	if err != nil || c.Guard == Bare || c.Guard == Static {
		cancel()
	} else {
		time.AfterFunc(reportGrace, cancel)
	}
	return errors.Join(err, <-probed)
}

// probeWindow has third hosts try the first port that the kernel expects a connection at.
func (s *NATStage) probeWindow(ctx context.Context, c Cell, mark int, result *CellResult) error {
	if c.Guard == Bare || c.Guard == Static {
		return nil
	}
	w, err := s.watch.first(ctx, mark)
	if err != nil {
		return err
	}
	return s.strangersRefused(w.To, result)
}

// strangers are the third hosts, on the clients' side and on the server's.
var strangers = [...]Host{Client2, Server2}

// strangersRefused has third hosts try a port, and fails if one gets an answer. Hosts in the network of a hairpin's client
// need no gateway to reach it, so that their probes would say nothing of one.
func (s *NATStage) strangersRefused(to netip.AddrPort, result *CellResult) error {
	var results [len(strangers)][]ProbeResult
	var probes []probe
	for i, from := range strangers {
		if neighbours := s.nat.hairpin && from == Server2 && to.Addr() == insider.v4; !neighbours {
			probes = append(probes, probe{from, []netip.AddrPort{to}, &results[i]})
		}
	}
	err := s.refused(probes...)
	for _, r := range slices.Concat(results[:]...) {
		result.Strangers.Sent += r.Sent
		result.Strangers.Answered = append(result.Strangers.Answered, r.Answered...)
	}
	return err
}

// holdBehindNAT arranges a data connection and holds still while third hosts try it; then the promised host does.
func (s *NATStage) holdBehindNAT(ctx context.Context, c Cell, mark int, result *CellResult) error {
	start := time.Now()
	ctl, err := s.dial(c.Scenario)
	if err != nil {
		return err
	}
	defer ctl.conn.Close()
	promised, err := ctl.arrangeFor(c.Scenario, s.nat.clientAddr(c.Family))
	if err != nil {
		return err
	}
	from := s.nat.client()
	if c.Mode.Active() {
		from = Server
	} else {
		promised = netip.AddrPortFrom(s.nat.reach(c.Scenario).Addr(), promised.Port())
	}
	switch {
	case c.Guard == Static:
		err = s.strangerGetsIn(c, promised, result)
	case c.opaque() && c.Guard == Ours: // what will be expected is only known when it is used
		err = s.strangersRefused(promised, result)
	default:
		err = s.holdWindow(ctx, mark, &promised, result)
	}
	if err == nil {
		err = s.reaches(from, []netip.AddrPort{promised}, 1, new(ProbeResult))
	}
	result.Session = time.Since(start)
	_, quitErr := ctl.do(221, "QUIT")
	return errors.Join(err, quitErr)
}

// holdWindow waits for the expectation, which says where the connection is to go, and has third hosts try that.
func (s *NATStage) holdWindow(ctx context.Context, mark int, promised *netip.AddrPort, result *CellResult) error {
	ctx, cancel := context.WithTimeout(ctx, reportGrace)
	defer cancel()
	w, err := s.watch.first(ctx, mark)
	if err != nil {
		return err
	}
	*promised = w.To
	return s.strangersRefused(w.To, result)
}

// strangerGetsIn shows what the static recipe leaves open: a third host reaches the port of somebody else's transfer.
func (s *NATStage) strangerGetsIn(c Cell, promised netip.AddrPort, result *CellResult) error {
	from := Client2
	if c.Mode.Active() {
		// The recipe lets the server itself reach every high port; another host with its address is not in the lab.
		from = Server
	}
	return s.reaches(from, []netip.AddrPort{promised}, 1, &result.Strangers)
}

// account notes the windows of a session, and fails if ftpalg leaves one open behind it or admits more than one host.
func (s *NATStage) account(c Cell, mark int, result *CellResult) {
	if c.Guard == Bare || c.Guard == Static {
		return
	}
	patience, needed := reportGrace, 1
	if c.Guard == Kernel && result.Err != nil {
		patience = 0 // it keeps what was never used for minutes
	}
	var open int
	result.Windows, open = s.watch.settle(mark, needed, patience)
	if c.Guard != Ours || result.Err != nil {
		return
	}
	if open > 0 { // if the report has no gap, which the kernel's own list shows
		result.Err = s.nothingExpected()
	}
	if len(result.Windows) == 0 {
		result.Err = errors.New("the kernel expected nothing, and data passed")
	}
	if slices.ContainsFunc(result.Windows, func(w Window) bool { return !w.From.IsSingleIP() }) {
		result.Err = errors.Join(result.Err, fmt.Errorf("more than one host was admitted: %v", result.Windows))
	}
}

// Holds tells whether the cell's client holds still in place of a transfer, so that its exposure is the probes' doing.
func (c Cell) Holds() bool { return c.Client.command == nil }
