// Package lab is the network that the tests of nfq and nfq/rules run in: client — gateway — server, in namespaces that
// only the test's own process sees, and that end with it.
package lab

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// env marks the copy of this test binary that runs in its own network and mount namespaces.
const env = "FTPALG_NFQ_LAB"

// Main is called by TestMain: it runs the tests in network and mount namespaces of their own when it may, so that no rule, queue or
// namespace name of the host is touched and nothing outlives the process. The whole process has to move: /proc/net
// shows the namespace of its main thread.
func Main(m *testing.M) {
	if os.Getuid() != 0 || os.Getenv(env) != "" {
		if os.Getenv(env) != "" {
			if err := prepare(); err != nil {
				fmt.Fprintln(os.Stderr, "lab:", err)
				os.Exit(1)
			}
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), env+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	// The death signal follows the thread that starts the child: the main thread, which init keeps for us.
	if err := cmd.Run(); err != nil {
		if cmd.ProcessState == nil {
			fmt.Fprintln(os.Stderr, "lab:", err)
			os.Exit(1)
		}
		os.Exit(cmd.ProcessState.ExitCode())
	}
	os.Exit(0)
}

// prepare gives `ip netns add` a directory that no other process sees, and brings the loopback up.
func prepare() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		return err
	}
	if err := syscall.Mount("lab", "/run/netns", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount /run/netns: %w", err)
	}
	return exec.Command("ip", "link", "set", "lo", "up").Run()
}

// NeedRoot ends the test where the kernel cannot be used; where it must be used, that is a failure.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" || os.Getenv("FTPALG_ROOT_TESTS") == "1" {
		t.Fatal("this test needs root, and CI or FTPALG_ROOT_TESTS says that it must run")
	}
	t.Skip("SKIPPED: needs root for network namespaces and NFQUEUE; run: sudo go test ./nfq/...")
}

// Run runs a command in the lab's gateway, which is the namespace of this process.
func Run(t testing.TB, command string) {
	t.Helper()
	f := strings.Fields(command)
	if out, err := exec.Command(f[0], f[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", command, err, bytes.TrimSpace(out))
	}
}

// init keeps the main thread for the main goroutine: /proc/net shows that thread's namespace, so no test may take it
// into another.
func init() { runtime.LockOSThread() }

var built bool

// Build makes client — gateway — server, IPv4 and IPv6; the gateway is this process. It stands until the process
// ends, for all tests.
func Build(t testing.TB) {
	t.Helper()
	NeedRoot(t)
	if built {
		return
	}
	built = true
	for _, side := range []struct{ name, net4, net6 string }{
		{"client", "192.0.2.", "2001:db8:1::"},
		{"server", "198.51.100.", "2001:db8:2::"},
	} {
		Run(t, "ip netns add "+side.name)
		Run(t, "ip link add "+side.name+" type veth peer name eth0 netns "+side.name)
		Run(t, "ip addr add "+side.net4+"1/24 dev "+side.name)
		Run(t, "ip addr add "+side.net6+"1/64 dev "+side.name+" nodad")
		Run(t, "ip link set "+side.name+" up")
		in := "ip -n " + side.name + " "
		Run(t, in+"link set lo up")
		Run(t, in+"addr add "+side.net4+"2/24 dev eth0")
		Run(t, in+"addr add "+side.net6+"2/64 dev eth0 nodad")
		Run(t, in+"link set eth0 up")
		Run(t, in+"route add default via "+side.net4+"1")
		Run(t, in+"route add default via "+side.net6+"1")
	}
	Run(t, "sysctl -qw net.ipv4.ip_forward=1")
	Run(t, "sysctl -qw net.ipv6.conf.all.forwarding=1")
}

// Rule adds one rule for IPv4 and IPv6 to the lab's gateway, and removes it with the test.
func Rule(t testing.TB, rule string) {
	t.Helper()
	for _, tool := range []string{"iptables", "ip6tables"} {
		Run(t, tool+" -w -t mangle -A PREROUTING "+rule)
		t.Cleanup(func() { Run(t, tool+" -w -t mangle -D PREROUTING "+rule) })
	}
}

// Inside runs f on a thread in the named namespace; sockets that f makes stay there.
func Inside(t testing.TB, name string, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread dies with the goroutine, in the namespace
		ns, err := os.Open("/run/netns/" + name)
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("enter namespace %s: %v", name, err)
	}
}
