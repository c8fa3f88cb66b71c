// Package lab builds a small internet out of network namespaces, with real FTP servers and clients in it and ftpalg on
// the gateway between them. The demo and the end-to-end tests share it.
//
//	client  192.0.2.2  2001:db8:1::2 ─┐                ┌─ server  198.51.100.2  2001:db8:2::2
//	                                  ├─── gateway ────┤
//	client2 192.0.2.3  2001:db8:1::3 ─┘  FORWARD DROP  └─ server2 198.51.100.3  2001:db8:2::3
//
// Nothing in the host's own namespaces is changed: interfaces are created inside the lab's namespaces, and only their
// names, which carry this process's id, are visible outside.
package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// Host is the role of a network namespace in the lab.
type Host string

// The hosts of the lab.
const (
	Client  Host = "client"
	Client2 Host = "client2"
	Gateway Host = "gateway"
	Server  Host = "server"
	Server2 Host = "server2"
)

// closeTimeout bounds the removal of a lab: it has to end even if what it removes hangs.
var closeTimeout = patient(20 * time.Second)

// namespacePrefix starts the name of each of our namespaces. The owner's process id follows it.
const namespacePrefix = "ftpalg"

// endpoint is a host at the edge of the lab, and its side of the gateway.
type endpoint struct {
	host   Host
	v4, v6 netip.Addr
	gw4    netip.Addr
	gw6    netip.Addr
}

var endpoints = []endpoint{
	edge(Client, "192.0.2.2", "2001:db8:1::2", "192.0.2.1", "2001:db8:1::1"),
	edge(Client2, "192.0.2.3", "2001:db8:1::3", "192.0.2.1", "2001:db8:1::1"),
	edge(Server, "198.51.100.2", "2001:db8:2::2", "198.51.100.1", "2001:db8:2::1"),
	edge(Server2, "198.51.100.3", "2001:db8:2::3", "198.51.100.1", "2001:db8:2::1"),
}

func edge(host Host, v4, v6, gw4, gw6 string) endpoint {
	return endpoint{
		host: host,
		v4:   netip.MustParseAddr(v4), v6: netip.MustParseAddr(v6),
		gw4: netip.MustParseAddr(gw4), gw6: netip.MustParseAddr(gw6),
	}
}

// Family is an address family.
type Family int

// The address families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

func (f Family) String() string { return "v" + strconv.Itoa(int(f)) }

// Addr returns the address of a host at the edge of the lab.
func Addr(host Host, family Family) netip.Addr {
	for _, e := range endpoints {
		if e.host != host {
			continue
		}
		if family == IPv4 {
			return e.v4
		}
		return e.v6
	}
	return netip.Addr{}
}

// Ports is a range of TCP ports, both ends included.
type Ports struct{ First, Last uint16 }

// Contains tells whether a port is in the range.
func (p Ports) Contains(port uint16) bool { return p.First <= port && port <= p.Last }

// The port ranges of the lab. In each direction one range holds the ports that a data connection may have, and beside
// it lies one that no server and no client ever announces: a probe at it is never a probe at a promised port, not even
// one at a port that is promised an instant later.
var (
	PolicyPassive = Ports{50000, 50100} // the servers' passive range, as the policy file states it
	ServerPassive = Ports{50000, 50049} // what the servers use of it
	NeverPassive  = Ports{50050, 50100} // what they do not
	ClientPorts   = Ports{40000, 40999} // the clients' ephemeral ports, so of what PORT and EPRT announce
	NeverActive   = Ports{41000, 41050}
)

// Lab is one set of namespaces. Several labs live side by side in one process without seeing one another.
type Lab struct {
	// Dir holds everything that the lab's programs write. Close removes it.
	Dir string
	id  string
	// hosts are those whose namespace New at least tried to make: what Close removes.
	hosts []Host
}

var created atomic.Int32

// New builds a lab. When ctx ends while it does so, what was built is removed again.
func New(ctx context.Context) (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("lab: network namespaces need root: run as root")
	}
	removeStale()
	dir, err := os.MkdirTemp("", "ftpalg-lab-")
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	l := &Lab{Dir: dir, id: fmt.Sprintf("%s-%d-%d", namespacePrefix, os.Getpid(), created.Add(1))}
	if err := l.build(ctx); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (l *Lab) build(ctx context.Context) error {
	// The servers change to an account without rights, which has to reach its home below this directory.
	if err := os.Chmod(l.Dir, 0o755); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	if err := l.addHost(ctx, Gateway); err != nil {
		return err
	}
	for _, e := range endpoints {
		if err := l.addHost(ctx, e.host); err != nil {
			return err
		}
		if err := l.connect(ctx, e); err != nil {
			return err
		}
	}
	return l.SetForward(ctx, Drop)
}

func (l *Lab) addHost(ctx context.Context, h Host) error {
	l.hosts = append(l.hosts, h)
	if _, err := run(ctx, "ip", "netns", "add", l.Namespace(h)); err != nil {
		return err
	}
	return l.configure(ctx, h)
}

// configure brings a new namespace up. IPv6 duplicate address detection is switched off: it would cost a second for
// each address, and the addresses are ours alone.
func (l *Lab) configure(ctx context.Context, h Host) error {
	settings := []string{
		"net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0",
		"net.ipv6.conf.default.accept_ra=0", "net.ipv6.conf.default.disable_ipv6=0",
	}
	switch h {
	case Gateway:
		settings = append(settings, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	case Client:
		settings = append(settings, portRange())
	}
	if _, err := l.Run(ctx, h, "sysctl", append([]string{"-q", "-w"}, settings...)...); err != nil {
		return err
	}
	_, err := l.Run(ctx, h, "ip", "link", "set", "lo", "up")
	return err
}

// portRange is the setting that clients' ports come from. The first is kept for tests, which listen there.
func portRange() string {
	return fmt.Sprintf("net.ipv4.ip_local_port_range=%d %d", ClientPorts.First+1, ClientPorts.Last)
}

// connect ties an edge host to the gateway by a pair of interfaces of its own. The gateway answers to one address on
// both interfaces of a side and has a route to each host, so that no bridge is needed.
func (l *Lab) connect(ctx context.Context, e endpoint) error {
	near, far := l.Namespace(e.host), l.Namespace(Gateway)
	device := string(e.host)
	steps := [][]string{
		{"link", "add", "eth0", "netns", near, "type", "veth", "peer", "name", device, "netns", far},
		{"-n", near, "link", "set", "eth0", "up"},
		{"-n", far, "link", "set", device, "up"},
		{"-n", near, "addr", "add", e.v4.String() + "/32", "dev", "eth0"},
		{"-n", near, "addr", "add", e.v6.String() + "/128", "dev", "eth0", "nodad"},
		{"-n", far, "addr", "add", e.gw4.String() + "/32", "dev", device},
		{"-n", far, "addr", "add", e.gw6.String() + "/128", "dev", device, "nodad"},
		{"-n", near, "route", "add", e.gw4.String() + "/32", "dev", "eth0"},
		{"-n", near, "route", "add", "default", "via", e.gw4.String(), "dev", "eth0", "onlink"},
		{"-n", near, "route", "add", e.gw6.String() + "/128", "dev", "eth0"},
		{"-n", near, "route", "add", "default", "via", e.gw6.String(), "dev", "eth0", "onlink"},
		{"-n", far, "route", "add", e.v4.String() + "/32", "dev", device},
		{"-n", far, "route", "add", e.v6.String() + "/128", "dev", device},
	}
	for _, step := range steps {
		if _, err := run(ctx, "ip", step...); err != nil {
			return err
		}
	}
	return nil
}

// ForwardPolicy is what the gateway's FORWARD chain does with a packet that no rule takes.
type ForwardPolicy string

// The forward policies: Drop is the lab's normal state, Accept is how a transfer is tried without a firewall.
const (
	Drop   ForwardPolicy = "DROP"
	Accept ForwardPolicy = "ACCEPT"
)

// SetForward sets the policy of the gateway's FORWARD chain for both address families.
func (l *Lab) SetForward(ctx context.Context, policy ForwardPolicy) error {
	for _, tool := range []string{"iptables", "ip6tables"} {
		if _, err := l.Run(ctx, Gateway, tool, "-w", "-P", "FORWARD", string(policy)); err != nil {
			return err
		}
	}
	return nil
}

// Namespace returns the name of a host's network namespace, as `ip netns` shows it.
func (l *Lab) Namespace(h Host) string { return l.id + "-" + string(h) }

// Path returns a path below the lab's directory.
func (l *Lab) Path(elem ...string) string {
	return filepath.Join(append([]string{l.Dir}, elem...)...)
}

// Close ends every process in the lab's namespaces and removes the namespaces and the lab's directory. It works
// whatever has become of the context that the lab was made with.
func (l *Lab) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	var errs []error
	for _, h := range l.hosts {
		errs = append(errs, removeNamespace(ctx, l.Namespace(h)))
	}
	l.hosts = nil
	errs = append(errs, os.RemoveAll(l.Dir))
	return errors.Join(errs...)
}

// removeNamespace ends the processes in a namespace of ours, waits until they are gone and removes the namespace.
func removeNamespace(ctx context.Context, name string) error {
	if _, err := os.Stat("/run/netns/" + name); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	gone := func() (bool, error) {
		out, err := run(ctx, "ip", "netns", "pids", name)
		if err != nil {
			return false, err
		}
		pids := strings.Fields(out)
		for _, field := range pids {
			if pid, err := strconv.Atoi(field); err == nil && pid != os.Getpid() {
				_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended by itself
			}
		}
		return len(pids) == 0, nil
	}
	err := Wait(ctx, "the processes of "+name+" to end", gone)
	_, delErr := run(ctx, "ip", "netns", "del", name)
	return errors.Join(err, delErr)
}

// removeStale removes the namespaces of labs whose process was killed before it could close them.
func removeStale() {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	names, _ := filepath.Glob("/run/netns/" + namespacePrefix + "-*-*-*")
	for _, path := range names {
		name := filepath.Base(path)
		pid, err := strconv.Atoi(strings.Split(name, "-")[1])
		if err != nil || !isOurs(name) || syscall.Kill(pid, 0) == nil {
			continue
		}
		_ = removeNamespace(ctx, name) // another process may be removing it too
	}
}

// isOurs tells whether a namespace's name ends in a host of the lab.
func isOurs(name string) bool {
	last := Host(name[strings.LastIndexByte(name, '-')+1:])
	return last == Gateway || last == Insider || Addr(last, IPv4).IsValid()
}
