package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"ftpalg/scripts/lab"
)

// terminatingPolicy is what ftpalg runs with where it opens TLS. Which client it is decides how data connections go. The
// limits are out of the way.
const terminatingPolicy = `version: 1
servers:
  - name: files
    addresses: [198.51.100.2]
    explicit: [21, 2121]
    implicit: [2990]
    passive: 50000-50100
    certificates: [{certificate: %q, key: %q}]
    upstream: {verify: none}
clients:
  - name: relayed
    addresses: [192.0.2.2]
  - name: direct
    addresses: [192.0.2.3]
rules:
  - {name: relayed, from: [relayed], to: [files], action: terminate, data: relay}
  - {name: direct, from: [direct], to: [files], action: terminate, data: direct}
limits:
  sessions: 200000
  sessions-per-client: 200000
`

// terminated is ftpalg that opens TLS.
func (g *gateway) terminated(ctx context.Context, p programs) error {
	return g.daemon(ctx, p, g.terminatingPolicy())
}

func (g *gateway) terminatingPolicy() string {
	return fmt.Sprintf(terminatingPolicy, g.Path(certificateFile), g.Path(keyFile))
}

// beside gives the same gateway for the clients whose data connections are not relayed.
func (g *gateway) beside() *gateway {
	other := &gateway{Lab: g.Lab, way: direct, host: lab.Client2, to: g.to, proc: g.proc, server: g.server}
	other.nextPort.Store(firstSource)
	return other
}

// gatewayAddr is where the rivals listen: none of them takes connections that are for the server.
var gatewayAddr = netip.MustParseAddr("192.0.2.1")

// tree is where a package was unpacked.
func (p *programs) tree(name string) (string, error) {
	return filepath.Abs(filepath.Join(p.servers, name))
}

// rival starts a program that listens on the gateway and waits until it does.
func (g *gateway) rival(ctx context.Context, port uint16, program string, args ...string) (err error) {
	g.to = gatewayAddr
	filter := fmt.Sprintf("sport = :%d", port)
	g.proc, err = g.start(ctx, lab.Gateway, func(string) (bool, error) {
		out, err := g.Run(ctx, lab.Gateway, "ss", "-Hltn", filter)
		return strings.Contains(out, "LISTEN"), err
	}, program, args...)
	return err
}

// configure writes a configuration file and gives its path.
func (g *gateway) configure(format string, args ...any) (string, error) {
	file := g.Path(wayNames[g.way] + ".conf")
	return file, os.WriteFile(file, fmt.Appendf(nil, format, args...), 0o600)
}

// modProxyConfig has mod_proxy speak explicit FTPS on both sides. It is as fast as its documentation allows: no logs, no
// scoreboard, no name lookups, no delays at login, a server that is drawn by lot among one (round robin would write into the
// database each time), no verification of the server's certificate, and its database in memory. Naming a small CA file on both
// sides keeps it from reading the system's, which it would do for each session at five times the whole cost of one.
const modProxyConfig = `ModulePath %[1]s/usr/lib/proftpd
LoadModule mod_tls.c
LoadModule mod_proxy.c
ServerType standalone
UseIPv6 off
UseReverseDNS off
User nobody
Group nogroup
WtmpLog off
TransferLog none
SystemLog none
ScoreboardFile none
PidFile %[2]s/proftpd.pid
DelayEngine off
ControlsEngine off
ProxyTables %[2]s/tables
<Global>
ProxyEngine on
ProxyRole reverse
ProxyLog none
ProxyReverseConnectPolicy Random
ProxyTLSEngine on
ProxyTLSProtocol TLSv1.3
ProxyTLSCipherSuite TLSv1.3 TLS_AES_128_GCM_SHA256
ProxyTLSVerifyServer off
ProxyTLSCACertificateFile %[3]s
TLSEngine on
TLSLog none
TLSCACertificateFile %[3]s
TLSECCertificateFile %[3]s
TLSECCertificateKeyFile %[4]s
TLSProtocol TLSv1.3
TLSCipherSuite TLSv1.3 TLS_AES_128_GCM_SHA256
TLSVerifyClient off
</Global>
Port 2121
ProxyReverseServers ftps://198.51.100.2:2121
<VirtualHost 192.0.2.1>
Port 21
ProxyReverseServers ftps://198.51.100.2:21
</VirtualHost>
`

// inMemory runs a program with a directory in memory, which goes when the program does: `ip netns exec` gives it mounts of
// its own.
const inMemory = `mkdir -p "$0" && mount -t tmpfs -o mode=0755 tmpfs "$0" && exec "$@"`

func (g *gateway) modProxied(ctx context.Context, p programs) error {
	tree, err := p.tree("mod_proxy")
	if err != nil {
		return err
	}
	work := g.Path("mod_proxy")
	file, err := g.configure(modProxyConfig, tree, work, g.Path(certificateFile), g.Path(keyFile))
	if err != nil {
		return err
	}
	return g.rival(ctx, benchPort, "sh", "-c", inMemory, work, tree+"/usr/sbin/proftpd", "-n", "-q", "-c", file)
}

// haProxyConfig passes everything through that comes to the implicit port or to a passive one, to the same port of the
// server, with TLS on both sides. One listener has all the ports, so that data connections resume the control connection's
// session. Its buffer is ftpalg's, which is larger than its own default and costs it a little less.
const haProxyConfig = `global
  maxconn 8000
  tune.bufsize 65536
  ssl-default-bind-options ssl-min-ver TLSv1.3
  ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256
  ssl-default-bind-curves X25519
  ssl-default-server-options ssl-min-ver TLSv1.3
  ssl-default-server-ciphersuites TLS_AES_128_GCM_SHA256
defaults
  mode tcp
  timeout connect 10s
  timeout client 1m
  timeout server 1m
listen ftps
  bind 192.0.2.1:2990,192.0.2.1:%d-%d ssl crt %s
  server files 198.51.100.2 ssl verify none
`

func (g *gateway) haProxied(ctx context.Context, p programs) error {
	tree, err := p.tree("haproxy")
	if err != nil {
		return err
	}
	ports := lab.NeverPassive
	file, err := g.configure(haProxyConfig, ports.First, ports.Last, g.Path(bothFile))
	if err != nil {
		return err
	}
	return g.rival(ctx, implicitPort, tree+"/usr/sbin/haproxy", "-db", "-f", file)
}

// stunnelConfig is what all services share, and stunnelServices what they are for one port: stunnel speaks TLS on one side of
// a service, so that two in a row have it on both.
const (
	stunnelConfig = `foreground = yes
debug = err
pid =
sslVersion = TLSv1.3
ciphersuites = TLS_AES_128_GCM_SHA256
curves = X25519
socket = a:SO_REUSEADDR=1
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
`
	stunnelServices = `[in%[1]d]
accept = 192.0.2.1:%[1]d
connect = 127.0.0.1:%[1]d
cert = %[2]s
key = %[3]s
[out%[1]d]
client = yes
accept = 127.0.0.1:%[1]d
connect = 198.51.100.2:%[1]d
`
)

func (g *gateway) stunnelled(ctx context.Context, p programs) error {
	tree, err := p.tree("stunnel")
	if err != nil {
		return err
	}
	text := stunnelConfig
	service := func(port uint16) {
		text += fmt.Sprintf(stunnelServices, port, g.Path(certificateFile), g.Path(keyFile))
	}
	service(implicitPort)
	for port := lab.NeverPassive.First; port <= lab.NeverPassive.Last; port++ {
		service(port)
	}
	file, err := g.configure("%s", text)
	if err != nil {
		return err
	}
	return g.rival(ctx, lab.NeverPassive.Last, tree+"/usr/bin/stunnel4", file)
}
