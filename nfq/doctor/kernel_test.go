package doctor

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ftpalg/nfq"
	"ftpalg/nfq/internal/lab"
	"ftpalg/nfq/rules"
	"ftpalg/policy"
)

// ownKernel says that the machine is this test's own (scripts/kernel): what belongs to no network namespace may be changed.
var ownKernel = os.Getenv("FTPALG_OWN_KERNEL") == "1"

func TestMain(m *testing.M) {
	if ownKernel {
		os.Exit(m.Run())
	}
	lab.Main(m)
}

const (
	inspecting  = "version: 1\nhelper: auto\nservers: [{name: files, addresses: [198.51.100.2, '2001:db8:2::2'], passive: 50000-50100}]\nrules: [{name: all, action: inspect}]\n"
	terminating = "version: 1\nservers: [{name: files, addresses: [198.51.100.2], implicit: []}]\nauthority: {certificate: cert.pem, key: key.pem}\nrules: [{name: all, action: terminate}]\n"
)

// stage is a machine for the doctor, which is this process's own network namespace.
type stage struct {
	*testing.T
	subject Subject
	path    string // a directory of commands that come first
}

// newStage gives a machine without any rules, which forwards, and a policy.
func newStage(t *testing.T, text string) *stage {
	t.Helper()
	lab.Build(t)
	s := &stage{T: t, path: t.TempDir()}
	file := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	s.subject = Subject{Config: rules.Config{Queues: [2]uint16{21, 21}}, Backend: "iptables", PolicyFile: file}
	s.reload()
	t.Cleanup(func() { s.sh("nft flush ruleset") })
	return s
}

// reload reads the policy again, as the next run of the doctor does. Certificates are not what is tested here.
func (s *stage) reload() {
	s.Helper()
	p, err := policy.Load(s.subject.PolicyFile)
	if err != nil {
		s.Fatal(err)
	}
	s.subject.Config.Policy = p
}

// sh runs a line as whoever reads it would.
func (s *stage) sh(line string) {
	s.Helper()
	cmd := exec.Command("sh", "-ec", line)
	cmd.Env = append(os.Environ(), "PATH="+s.path+":"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		s.Fatalf("%s: %v\n%s", line, err, out)
	}
}

func (s *stage) install() {
	s.Helper()
	cfg := s.subject.Config
	cfg.Helper = "sane"
	if err := rules.Install(s.Context(), rules.IPTables(cfg)); err != nil {
		s.Fatal(err)
	}
}

func (s *stage) examine() []Finding {
	s.reload()
	return Examine(Read(s.Context(), s.subject))
}

// pick gives the first finding of a check at a level with a text in it.
func pick(all []Finding, level Level, check, text string) (Finding, bool) {
	at := slices.IndexFunc(all, func(f Finding) bool { return f.Level == level && f.Check == check && strings.Contains(f.Found, text) })
	if at < 0 {
		return Finding{}, false
	}
	return all[at], true
}

func (s *stage) want(level Level, check, text string) Finding {
	s.Helper()
	all := s.examine()
	f, found := pick(all, level, check, text)
	if !found {
		s.Fatalf("no %s of %s says %q: %q", level, check, text, all)
	}
	return f
}

func (s *stage) wantNone(level Level, check, text string) {
	s.Helper()
	if f, found := pick(s.examine(), level, check, text); found {
		s.Errorf("%s: %s", level, f.Found)
	}
}

// mended wants a finding, runs the command that it comes with, and wants the finding to be gone then, and no other in its place.
func (s *stage) mended(level Level, check, text string) {
	s.Helper()
	before := s.examine()
	f, found := pick(before, level, check, text)
	if !found {
		s.Fatalf("no %s of %s says %q: %q", level, check, text, before)
	}
	s.Logf("%s\n%s", f.Found, f.Fix)
	s.sh(f.Fix)
	for _, f := range s.examine() {
		if f.Level != OK && (f.Check == check && strings.Contains(f.Found, text) || !slices.Contains(before, f)) {
			s.Errorf("after the command: %s: %s", f.Level, f.Found)
		}
	}
}

// TestSettings breaks each setting that a network namespace has, and mends it with what the doctor says.
func TestSettings(t *testing.T) {
	for _, c := range []struct {
		level              Level
		check, setup, text string
	}{
		{Wrong, "forwarding", "sysctl -qw net.ipv4.ip_forward=0", "net.ipv4.ip_forward is 0"},
		{Wrong, "forwarding", "sysctl -qw net.ipv6.conf.all.forwarding=0", "net.ipv6.conf.all.forwarding is 0"},
		{Note, "forwarding", "sysctl -qw net.ipv4.conf.client.forwarding=0", "comes in at client is not forwarded"},
		{Note, "forwarding", "ip link add a.b type veth peer name b.a && sysctl -qw net/ipv6/conf/a.b/forwarding=0", "comes in at a.b is not forwarded"},
		{Note, "source-checks", "sysctl -qw net.ipv4.conf.all.rp_filter=0", "rp_filter is 0"},
		{Note, "source-checks", "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.server.rp_filter=2", "server"},
		{Note, "localnet", "sysctl -qw net.ipv4.conf.client.route_localnet=1", "net.ipv4.conf.client.route_localnet is 1"},
		{Note, "conntrack-timeout", "sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_established=600", "is 600"},
		{Wrong, "conntrack-events", "sysctl -qw net.netfilter.nf_conntrack_events=0", "no events"},
	} {
		t.Run(c.text, func(t *testing.T) {
			s := newStage(t, inspecting)
			s.sh(c.setup)
			s.mended(c.level, c.check, c.text)
		})
	}
	lab.Run(t, "ip link del a.b")
}

// TestTerminateNeeds: what only terminated connections need.
func TestTerminateNeeds(t *testing.T) {
	s := newTerminating(t)
	s.sh("sysctl -qw net.ipv4.conf.client.src_valid_mark=1")
	s.mended(Wrong, "source-marks", "client.src_valid_mark is 1")
	s.sh("ip link add br0 type bridge && sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=0")
	s.mended(Note, "bridges", "bridge-nf-call-iptables is 1")
	s.sh("ip rule add pref 99 fwmark 0x10000000/0x10000000 lookup 99")
	s.subject.Config.Terminate = rules.DefaultTerminate
	s.want(Wrong, "routing", "'pref 99")
	s.sh("ip rule del pref 99")
	s.wantNone(Wrong, "routing", "")
}

func newTerminating(t *testing.T) *stage {
	s := newStage(t, inspecting)
	dir := filepath.Dir(s.subject.PolicyFile)
	s.sh("cd " + dir + " && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key.pem -out cert.pem -days 30 -subj /CN=ca && chmod 600 key.pem")
	text := strings.ReplaceAll(strings.ReplaceAll(terminating, "cert.pem", dir+"/cert.pem"), "key.pem", dir+"/key.pem")
	if err := os.WriteFile(s.subject.PolicyFile, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	s.reload()
	return s
}

// TestRulesOfOthers: single rules of other people's, in each tool.
func TestRulesOfOthers(t *testing.T) {
	for _, c := range []struct {
		name, setup string
		level       Level
		check, text string
	}{
		{"a queue of its own number", "iptables -w -A FORWARD -p tcp --dport 21 -j NFQUEUE --queue-num 7", Note, "other-queues", "queue 7"},
		{"our queue", "ip6tables -w -t mangle -A PREROUTING -p tcp -m multiport --ports 21 -j NFQUEUE --queue-balance 20:30", Wrong, "other-queues", "ftpalg's queue"},
		{"notrack, iptables", `iptables -w -t raw -A PREROUTING -p tcp --sport 21 -m comment --comment "fast \"path\"" -j CT --notrack`, Wrong, "notrack", "fast"},
		{"notrack, nft", "nft 'table inet fast { chain c { type filter hook prerouting priority raw; tcp dport { 20-25, 80 } notrack; }; }'", Wrong, "notrack", "rule inet fast c handle"},
		{"notrack of the passive range", "nft 'table ip fast { chain c { type filter hook prerouting priority raw; ip daddr 198.51.100.0/24 tcp dport >= 1024 notrack; }; }'", Wrong, "notrack", "table ip fast"},
		{"the ftp helper, behind ours", "iptables -w -t raw -A PREROUTING -p tcp --dport 21 -j CT --helper ftp", Note, "other-helpers", "comes first"},
		{"the ftp helper, before ours", "iptables -w -t raw -I PREROUTING -p tcp --dport 21 -j CT --helper ftp", Wrong, "other-helpers", "opens ports"},
		{"the ftp helper, nft", `nft 'table inet h { ct helper f { type "ftp" protocol tcp; }; chain c { type filter hook prerouting priority filter; tcp dport 21 ct helper set "f"; }; }'`, Note, "other-helpers", `"ftp"`},
		{"a firewall of nft's", `nft 'table inet f { chain forward { type filter hook forward priority filter; policy drop; ct state vmap { established : accept, related : accept, invalid : drop }; tcp dport 22 accept; }; }'`, Wrong, "forward", "table inet f) drops new control connections"},
		{"one without RELATED", `nft 'table ip f { chain forward { type filter hook forward priority filter; policy drop; ip daddr 198.51.100.2 tcp dport 21 accept; ct state established accept; }; }'`, Wrong, "forward", "drops data connections"},
		{"one that goes by interfaces", `nft 'table inet f { chain forward { type filter hook forward priority filter; policy drop; ct state established,related accept; iifname "lan*" accept; }; }'`, Note, "forward", "may drop new control connections"},
		{"a DROP before our chain", "iptables -w -I FORWARD -p tcp --dport 0:1023 -j DROP", Wrong, "forward", "before ftpalg's rules"},
		{"iptables' other back end", "iptables-legacy -w -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT && iptables-legacy -w -P FORWARD DROP", Wrong, "forward", "iptables-legacy, table filter) drops new control connections"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStage(t, inspecting)
			s.install()
			s.writeInstaller()
			s.sh(c.setup)
			t.Cleanup(func() { s.sh("iptables-legacy -w -P FORWARD ACCEPT && iptables-legacy -w -F") })
			s.mended(c.level, c.check, c.text)
		})
	}
}

// writeInstaller makes a command "ftpalg" that installs the rules, as the daemon does before it goes to work.
func (s *stage) writeInstaller() {
	self, err := os.Executable()
	if err != nil {
		s.Fatal(err)
	}
	s.command("ftpalg", installEnv+"="+s.subject.PolicyFile+" exec "+self)
}

// command makes a command that comes first in PATH.
func (s *stage) command(name, script string) {
	s.Helper()
	if !strings.HasPrefix(script, "#!") {
		script = "#!/bin/sh\n" + script
	}
	if err := os.WriteFile(filepath.Join(s.path, name), []byte(script), 0o755); err != nil {
		s.Fatal(err)
	}
}

// TestOpenGateway: nothing is closed, and so there is nothing to open.
func TestOpenGateway(t *testing.T) {
	s := newStage(t, inspecting)
	s.install()
	s.mended(Note, "open", "198.51.100.2/32, 2001:db8:2::2/128 is reachable")
}

// TestOwnDecisions: with --no-accept the operator's own rules are asked.
func TestOwnDecisions(t *testing.T) {
	s := newStage(t, inspecting)
	s.subject.Config.NoAccept = true
	s.install()
	s.sh("iptables -w -P FORWARD DROP && ip6tables -w -P FORWARD DROP")
	s.mended(Wrong, "forward", "(iptables, table filter) drops control connections, data connections, new control connections")
	s.mended(Wrong, "forward", "(ip6tables, table filter) drops control connections, data connections, new control connections")
	for _, f := range s.examine() {
		if f.Check == "forward" && f.Level != OK || f.Check == "open" {
			t.Error(f)
		}
	}
}

// TestMarkedByNFT: where ftpalg's rules are nft's, every firewall has to accept what they accepted.
func TestMarkedByNFT(t *testing.T) {
	s := newStage(t, inspecting)
	s.subject.Backend = rules.BackendNFT
	s.sh("iptables -w -P FORWARD DROP && ip6tables -w -P FORWARD DROP")
	s.sh("nft 'table inet f { chain forward { type filter hook forward priority filter; policy drop; ct state established,related accept; }; }'")
	for _, who := range []string{"iptables, table filter", "ip6tables, table filter", "table inet f"} {
		s.mended(Wrong, "forward", "another firewall ("+who+") drops")
		s.want(OK, "forward", "another firewall ("+who+") lets FTP through")
	}
	s = newTerminating(t)
	s.sh("nft 'table inet f { chain in { type filter hook input priority filter; policy drop; }; }'")
	s.mended(Wrong, "local", "another firewall (table inet f) drops")
}

// TestObstacles: what ftpalg warns of when it starts is what the doctor finds, and mended in the same way. A firewall that accepts
// FTP by itself is none.
func TestObstacles(t *testing.T) {
	s := newStage(t, inspecting)
	s.sh("ip6tables -w -P FORWARD DROP")
	s.sh("nft 'table inet f { chain forward { type filter hook forward priority filter; policy drop; }; }'")
	s.sh("nft 'table inet g { chain forward { type filter hook forward priority filter; policy drop; tcp dport { 21, 990 } accept; ct state established,related accept; }; }'")
	obstacles := func(b rules.Backend) []Obstacle {
		s.subject.Backend = b
		list, err := Obstacles(t.Context(), s.subject)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if list := obstacles(rules.BackendIPTables); len(list) > 0 {
		t.Errorf("no mark tells what iptables accepts: %v", list)
	}
	list := obstacles(rules.BackendNFT)
	var said []string
	for _, o := range list {
		said = append(said, o.String())
		s.sh(o.Fix)
	}
	const why = " does not know the mark of what ftpalg's table accepts, and what it drops stays dropped"
	want := []string{"ip6tables, table filter (chain FORWARD: policy drop)" + why, "table inet f (chain forward: policy drop)" + why}
	if !slices.Equal(said, want) {
		t.Errorf("obstacles: %q, want %q", said, want)
	}
	if list := obstacles(rules.BackendNFT); len(list) > 0 {
		t.Errorf("they were mended: %v", list)
	}
}

// TestSourceNAT: what NAT means for active mode.
func TestSourceNAT(t *testing.T) {
	s := newStage(t, inspecting)
	s.sh("iptables -w -t nat -A POSTROUTING -o server -j MASQUERADE")
	s.want(OK, "source-nat", "rewrites PORT")
	s.want(OK, "helper", `"sane" carries pinholes`) // our own is for connections without NAT
}

// TestQueueReader: who reads our queue.
func TestQueueReader(t *testing.T) {
	s := newStage(t, inspecting)
	s.want(OK, "queues", "queue 21 is free")
	q, err := nfq.Open(t.Context(), 21, nfq.Options{}, func(*nfq.Packet) {})
	if err != nil {
		t.Fatal(err)
	}
	s.want(Wrong, "queues", "queue 21 is read by process")
	if err := q.Close(); err != nil {
		t.Error(err)
	}
	// Another program, which the doctor's command ends.
	reader := exec.Command("/proc/self/exe")
	reader.Env = append(os.Environ(), readerEnv+"=1")
	out, err := reader.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := reader.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil { // it has the queue
		t.Fatal(err)
	}
	f := s.want(Wrong, "queues", "which is not ftpalg")
	s.sh(f.Fix)
	if err := reader.Wait(); err == nil {
		t.Error("the command did not end the process")
	}
	s.want(OK, "queues", "queue 21 is free")
}

// With these, this test binary reads queue 21, or installs the rules of a policy, and does nothing else.
const (
	readerEnv  = "FTPALG_DOCTOR_READER"
	installEnv = "FTPALG_DOCTOR_INSTALL"
)

func init() {
	switch ctx := context.Background(); {
	case os.Getenv(readerEnv) != "":
		if _, err := nfq.Open(ctx, 21, nfq.Options{}, func(*nfq.Packet) {}); err != nil {
			panic(err)
		}
		fmt.Println()
		select {}
	case os.Getenv(installEnv) != "":
		p, err := policy.Load(os.Getenv(installEnv))
		if err == nil {
			err = rules.Install(ctx, rules.IPTables(rules.Config{Queues: [2]uint16{21, 21}, Helper: "sane", Policy: p}))
		}
		if err != nil {
			panic(err)
		}
		os.Exit(0)
	}
}

// firewall gives the directory of an unpacked firewall.
func firewall(t *testing.T, name string) string {
	t.Helper()
	dir, err := filepath.Abs("../../.build/firewalls/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Fatalf("%v: run scripts/setup", err)
	}
	return dir
}

// ownEtc gives this process a copy of /etc, which ends with it, with what an unpacked package has there. The rest of the
// package is copied to the same root.
func ownEtc(t *testing.T, packed, root string) {
	t.Helper()
	for _, line := range []string{"cp -a /etc " + root, "cp -a " + packed + "/. " + root, "mount --bind " + root + "/etc /etc"} {
		lab.Run(t, line)
	}
	t.Cleanup(func() {
		if err := unix.Unmount("/etc", unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// TestUFW: with ufw itself, as Debian has it.
func TestUFW(t *testing.T) {
	s := newStage(t, inspecting)
	dir, root := firewall(t, "ufw"), t.TempDir()
	ownEtc(t, dir, root)
	s.sh("cd " + root + "/usr/share/ufw && cp *.rules ufw.conf /etc/ufw/")
	s.command("ufw", "PYTHONPATH="+dir+"/usr/lib/python3/dist-packages exec /usr/bin/python3 "+dir+"/usr/sbin/ufw --rootdir="+root+" --datadir="+root+` "$@"`)
	s.wantNone(OK, "ufw", "")
	s.install()
	s.sh("ufw --force enable")
	s.want(OK, "ufw", "not allowed is drop")
	s.want(OK, "forward", "ufw (iptables, table filter) lets FTP through")

	// Where ftpalg accepts nothing, ufw has to.
	s.subject.Config.NoAccept = true
	s.install()
	s.mended(Wrong, "forward", "ufw (iptables, table filter) drops new control connections")
	s.mended(Wrong, "forward", "ufw (ip6tables, table filter) drops new control connections")
	s.wantNone(Note, "open", "")
	s.sh("ufw default allow routed")
	s.mended(Note, "open", "198.51.100.2")

	s.sh("sed -i 's/^MANAGE_BUILTINS=.*/MANAGE_BUILTINS=yes/' /etc/default/ufw")
	s.sh("ufw reload")
	s.want(Wrong, "rules", "no jump from FORWARD")
	s.mended(Wrong, "ufw", "MANAGE_BUILTINS=yes")
	s.install()
	s.sh("ufw reload")
	s.wantNone(Wrong, "rules", "not in place")
	s.sh("echo net/ipv4/ip_forward=0 >>/etc/ufw/sysctl.conf")
	s.mended(Wrong, "ufw", "forwarding ends")
	s.sh("echo net/netfilter/nf_conntrack_helper=1 >>/etc/ufw/sysctl.conf")
	s.mended(Wrong, "ufw", "helpers by port")
	s.sh("ufw --force disable")
}

// TestFirewalld: with firewalld itself, as Debian has it, and a message bus of its own.
func TestFirewalld(t *testing.T) {
	s := newTerminating(t)
	dir, work := firewall(t, "firewalld"), t.TempDir()
	ownEtc(t, dir, t.TempDir())
	lib := dir + "/usr/lib"
	for name, value := range map[string]string{
		"PYTHONPATH": lib + "/python3/dist-packages", "GI_TYPELIB_PATH": lib + "/x86_64-linux-gnu/girepository-1.0",
		"LD_LIBRARY_PATH": lib + "/x86_64-linux-gnu", "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=" + work + "/bus",
	} {
		t.Setenv(name, value)
	}
	const open = `<busconfig><type>system</type><listen>unix:path=@/bus</listen><policy context="default"><allow user="*"/><allow own="*"/>` +
		`<allow send_type="method_call"/><allow send_type="method_return"/><allow send_type="error"/><allow send_type="signal"/><allow receive_type="method_call"/><allow receive_type="method_return"/>` +
		`<allow receive_type="error"/><allow receive_type="signal"/></policy></busconfig>`
	if err := os.WriteFile(work+"/bus.conf", []byte(strings.ReplaceAll(open, "@", work)), 0o644); err != nil {
		t.Fatal(err)
	}
	bus := start(t, "dbus-daemon", "--nofork", "--print-address=1", "--config-file="+work+"/bus.conf")
	if _, err := bus.Read(make([]byte, 1)); err != nil { // it listens
		t.Fatal(err)
	}
	start(t, "/usr/bin/python3", dir+"/usr/sbin/firewalld", "--nofork", "--nopid", "--log-file", work+"/log",
		"--system-config", "/etc/firewalld", "--default-config", lib+"/firewalld")
	s.command("firewall-cmd", "exec /usr/bin/python3 "+dir+`/usr/bin/firewall-cmd "$@"`)
	end := time.Now().Add(20 * time.Second)
	for exec.Command(s.path+"/firewall-cmd", "--state").Run() != nil {
		if time.Now().After(end) {
			t.Fatal("firewalld does not run")
		}
	}
	s.install()
	s.wantNone(Wrong, "rules", "not in place")
	s.want(Note, "firewalld", "takes ftpalg's rules out")
	s.sh("firewall-cmd --reload")
	s.want(Wrong, "rules", "not in place")
	s.mended(Wrong, "forward", "firewalld (table inet firewalld) drops new control connections")
	s.mended(Wrong, "local", "firewalld (table inet firewalld) drops new control connections")
	s.want(OK, "forward", "firewalld (table inet firewalld) lets FTP through at filter_FORWARD")
	s.want(OK, "local", "firewalld (table inet firewalld) lets FTP through at filter_INPUT")
	// Another server later: the policies are there already.
	s.sh("sed -i 's/198.51.100.2/198.51.100.2, 198.51.100.3/' " + s.subject.PolicyFile)
	s.mended(Wrong, "forward", "firewalld")
	s.mended(Wrong, "local", "firewalld")
}

// start runs a program until the test ends, and gives what it prints.
func start(t *testing.T, name string, args ...string) io.Reader {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	begun, stop, over := make(chan error), make(chan bool), make(chan bool)
	go func() {
		runtime.LockOSThread() // the death signal comes when the thread ends that started the program
		defer close(over)
		begun <- cmd.Start()
		<-stop
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	if err := <-begun; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(stop); <-over })
	return out
}

// TestDocker has the rules that dockerd 20.10 and newer make for their default bridge (libnetwork's iptables.go), as it
// restores them at each start: its own jumps first.
func TestDocker(t *testing.T) {
	const before = `*filter
:FORWARD DROP [0:0]
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
:DOCKER-ISOLATION-STAGE-2 - [0:0]
:DOCKER-USER - [0:0]
-I FORWARD -j DOCKER-ISOLATION-STAGE-1
-I FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -i docker0 -o docker0 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP
-A DOCKER-ISOLATION-STAGE-2 -j RETURN
-A DOCKER-USER -j RETURN
COMMIT
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
COMMIT
`
	s := newStage(t, inspecting)
	s.install()
	s.writeInstaller()
	rulesFile := filepath.Join(t.TempDir(), "docker")
	if err := os.WriteFile(rulesFile, []byte(before), 0o644); err != nil {
		t.Fatal(err)
	}
	s.sh("iptables-restore --noflush " + rulesFile)
	s.want(OK, "forward", "Docker (iptables, table filter) lets FTP through")
	s.sh("iptables -w -I DOCKER-USER -p tcp -d 198.51.100.0/24 -j DROP") // an operator's own
	s.mended(Wrong, "forward", "Docker (iptables, table filter) drops control connections, data connections, new control connections before ftpalg's rules")
	s.sh("iptables -w -D DOCKER-USER 1")

	s.subject.Config.NoAccept = true
	s.install()
	s.mended(Note, "forward", "Docker (iptables, table filter) may drop")
}
