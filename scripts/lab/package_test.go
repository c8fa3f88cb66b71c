package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// machine is a copy of this machine with systemd as its first process, in the gateway's network namespace.
type machine struct {
	t    *testing.T
	proc *Proc
	init string // process id of systemd
}

const machineScript = "../package.d/machine"

// boot starts a machine and waits until systemd has started it.
func boot(t *testing.T, l *Lab) *machine {
	t.Helper()
	script, err := filepath.Abs(machineScript)
	if err != nil {
		t.Fatal(err)
	}
	root := l.Path("machine")
	cgroup := newCgroup(t)
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	command := fmt.Sprintf("echo $$ >%s/cgroup.procs && exec nsenter --net=/run/netns/%s "+
		"unshare --cgroup --mount --pid --uts --ipc --fork --kill-child %s %s", cgroup, l.Namespace(Gateway), script, root)
	proc, err := start(context.WithoutCancel(t.Context()), nil, "sh", "-c", command)
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{t: t, proc: proc}
	t.Cleanup(func() {
		_ = os.WriteFile(filepath.Join(cgroup, "cgroup.kill"), []byte("1"), 0) // all that is left of it
		<-proc.Exited()
		if t.Failed() {
			t.Logf("the machine's console ends in:\n%s", tail(proc.Output(), 4000))
		}
	})
	m.wait("systemd to start", func() bool {
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", proc.PID()))
		m.init = strings.TrimSpace(string(children))
		return m.init != "" && m.ok("systemctl", "is-active", "basic.target")
	})
	return m
}

// newCgroup makes a control group for one machine.
func newCgroup(t *testing.T) string {
	t.Helper()
	top := "/sys/fs/cgroup"
	if _, err := os.Stat(top + "/cgroup.procs"); err != nil {
		top += "/unified" // beside version 1
	}
	dir, err := os.MkdirTemp(top, "ftpalg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		err := Wait(ctx, "the machine's control groups to go", func() (bool, error) {
			var groups []string
			err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
				if err == nil && e.IsDir() {
					groups = append([]string{path}, groups...) // the innermost first
				}
				return nil
			})
			for _, g := range groups {
				err = errors.Join(err, os.Remove(g))
			}
			return err == nil, nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	return dir
}

func (m *machine) command(args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"-t", m.init, "-a"}, args...)...)
}

// run runs a program in the machine and returns what it printed.
func (m *machine) run(args ...string) string {
	m.t.Helper()
	out, err := m.command(args...).CombinedOutput()
	if err != nil {
		m.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func (m *machine) ok(args ...string) bool { return m.command(args...).Run() == nil }

func (m *machine) wait(what string, done func() bool) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(m.t.Context(), patience)
	defer cancel()
	if err := Wait(ctx, what, func() (bool, error) { return done(), nil }); err != nil {
		m.t.Fatal(err)
	}
}

// put writes a file of the machine, for one user alone.
func (m *machine) put(path, user string, contents []byte) {
	m.t.Helper()
	cmd := m.command("install", "-o", user, "-m", "0400", "/dev/stdin", path)
	cmd.Stdin = bytes.NewReader(contents)
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("%s: %v: %s", path, err, out)
	}
}

// mainPID is the service's main process, as the machine numbers it.
func (m *machine) mainPID() int {
	m.t.Helper()
	pid, err := strconv.Atoi(m.run("systemctl", "show", "--property=MainPID", "--value", "ftpalg"))
	if err != nil {
		m.t.Fatal(err)
	}
	return pid
}

// files lists the machine's files but for those that its programs keep books in, and iptables' lock.
func (m *machine) files() string {
	m.t.Helper()
	return m.run("find", "/etc", "/usr", "/var/lib", "/lib/systemd", "/run", "-xdev",
		"-not", "-path", "/var/lib/dpkg/*", "-not", "-path", "/var/lib/systemd/*", "-not", "-path", "/run/systemd/*", "-not", "-path", "/run/xtables.lock",
		"-not", "-path", "/usr/share/mime/*", "-not", "-name", "*.cache*", "-not", "-path", "/etc/*.wants",
		"-not", "-name", "passwd-", "-not", "-name", "group-", "-not", "-name", "shadow-", "-not", "-name", "gshadow-")
}

// buildPackage builds the package twice, and fails the test unless both are the same, byte by byte.
func buildPackage(t *testing.T) string {
	t.Helper()
	var debs [2]string
	var contents [2][]byte
	for i := range debs {
		out, err := exec.Command("../package", t.TempDir()).Output()
		if err != nil {
			t.Fatalf("scripts/package: %v: %s", err, out)
		}
		debs[i] = strings.TrimSpace(string(out))
		if contents[i], err = os.ReadFile(debs[i]); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(contents[0], contents[1]) {
		t.Error("two builds of one commit differ")
	}
	if out, err := exec.Command("lintian", "--allow-root", "--fail-on", "error,warning", debs[0]).CombinedOutput(); err != nil {
		t.Errorf("lintian: %v:\n%s", err, out)
	}
	return debs[0]
}

// Outcome: the package is reproducible. Installed on a machine with systemd it runs with the unit's rights and no others, and
// opens nothing; with a policy it lets transfers through, in clear text and opened; a session survives reload, upgrade and,
// where it is inspected, a crash. Purged it leaves nothing.
func TestPackage(t *testing.T) {
	s, policy := halfOpened(t, Servers[0])
	deb := buildPackage(t)
	m := boot(t, s.Lab)
	before := m.files()
	contentsOfDeb, err := os.ReadFile(deb)
	if err != nil {
		t.Fatal(err)
	}
	m.put("/tmp/ftpalg.deb", "root", contentsOfDeb)

	m.run("dpkg", "-i", "/tmp/ftpalg.deb")
	m.run("systemctl", "is-active", "ftpalg")
	m.run("systemctl", "is-enabled", "ftpalg")
	if out := m.run("systemd-analyze", "verify", "ftpalg.service"); out != "" {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	m.run("systemd-analyze", "security", "--threshold=25", "ftpalg.service") // in tenths: below 2.5 is "OK"
	m.rights()
	m.nft()

	m.configure(s, policy)
	s.write(t, "down.bin", contents)
	m.run("systemctl", "reload", "ftpalg")
	transfers := func(what string, sessions ...*ftpClient) {
		t.Helper()
		for _, c := range sessions {
			if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
				t.Fatal(err)
			}
			if got, code := c.get("RETR down.bin"); code != 226 || !bytes.Equal(got, contents) {
				t.Errorf("%s: %s: %d, %d bytes", what, c.scenario.Family, code, len(got))
			}
		}
	}
	terminated, inspected := s.connect(t, explicitPASV), s.connect(t, plainIPv6)
	transfers("reloaded", terminated, inspected)

	m.upgrade()
	transfers("upgraded", terminated, inspected, s.connect(t, explicitPASV))
	m.run("ftpalg", "sessions")
	m.crash() // while the old process drains
	transfers("after a crash", inspected)

	terminated = s.connect(t, explicitPASV)
	old := m.upgrade()
	do(t, terminated.control, 221, "QUIT")
	m.wait("the old process to end", func() bool { return !m.ok("kill", "-0", strconv.Itoa(old)) })
	transfers("without the old process", inspected, s.connect(t, explicitPASV))
	m.crash()
	transfers("after another crash", inspected, s.connect(t, explicitPASV))
	m.purge(s, before)
}

// upgrade installs the package once more, which is an upgrade for all that dpkg knows, and returns the process that was the
// service's main one.
func (m *machine) upgrade() (old int) {
	m.t.Helper()
	old = m.mainPID()
	m.run("dpkg", "-i", "/tmp/ftpalg.deb")
	m.wait("another main process", func() bool { return m.mainPID() != old })
	if !m.ok("systemctl", "is-active", "ftpalg") {
		m.t.Error("the service is not active behind an upgrade")
	}
	return old
}

// crash kills the main process and waits until the service is there again.
func (m *machine) crash() {
	m.t.Helper()
	killed := m.mainPID()
	m.run("kill", "-KILL", strconv.Itoa(killed))
	m.wait("the service after a crash", func() bool {
		pid := m.mainPID()
		return pid != 0 && pid != killed && m.ok("systemctl", "is-active", "ftpalg")
	})
}

// rights fails the test unless the daemon has the unit's two capabilities, by whatever way, and is not root.
func (m *machine) rights() {
	m.t.Helper()
	status := m.run("cat", fmt.Sprintf("/proc/%d/status", m.mainPID()))
	const adminAndRaw = "0000000000003000" // CAP_NET_ADMIN is 12, CAP_NET_RAW is 13
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		if !strings.Contains(status, set+":\t"+adminAndRaw) {
			m.t.Errorf("%s is not %s:\n%s", set, adminAndRaw, status)
		}
	}
	if groups := m.run("id", "-g", "ftpalg"); !strings.Contains(status, "\nGid:\t"+groups+"\t") || !strings.Contains(status, "\nGroups:\t"+groups+" \n") {
		m.t.Errorf("not in the group %s alone:\n%s", groups, status)
	}
	if strings.Contains(status, "Uid:\t0") || !strings.Contains(status, "NoNewPrivs:\t1") {
		m.t.Errorf("root, or may become it:\n%s", status)
	}
}

// nft fails the test unless nft may change rules with the unit's rights. The daemon itself takes iptables where the kernel has no
// queue for nft.
func (m *machine) nft() {
	m.t.Helper()
	const dropIn = "/etc/systemd/system/ftpalg.service.d"
	m.run("mkdir", dropIn)
	m.put(dropIn+"/nft.conf", "root", []byte("[Service]\nExecStartPre=nft add table inet lab\nExecStartPre=nft delete table inet lab\n"))
	m.run("systemctl", "daemon-reload")
	m.run("systemctl", "restart", "ftpalg")
	m.run("rm", "-r", dropIn)
	m.run("systemctl", "daemon-reload")
}

// configure gives the service a policy and its key.
func (m *machine) configure(s *Stage, policy string) {
	m.t.Helper()
	for path, name := range map[string]string{s.Server.CA: "/etc/ftpalg/files.pem", s.Server.Key: "/etc/ftpalg/files.key"} {
		pem, err := os.ReadFile(path)
		if err != nil {
			m.t.Fatal(err)
		}
		m.put(name, "ftpalg", pem)
		policy = strings.ReplaceAll(policy, path, name)
	}
	m.put("/etc/ftpalg/policy.yaml", "ftpalg", []byte(policy))
}

// purge takes the package away, and fails the test if it leaves anything.
func (m *machine) purge(s *Stage, files string) {
	m.t.Helper()
	m.run("rm", "/etc/ftpalg/files.pem", "/etc/ftpalg/files.key")
	began := time.Now()
	m.run("dpkg", "-P", "ftpalg")
	if took := time.Since(began); took > patience {
		m.t.Errorf("the service took %s to stop", took)
	}
	if after := m.files(); after != files {
		m.t.Errorf("files were left, or are missing:\n%s", difference(files, after))
	}
	if left := ruleset(m.t, s.Lab); strings.Contains(left, "FTPALG") {
		m.t.Errorf("rules were left:\n%s", left)
	}
	if m.ok("pgrep", "-x", "ftpalg") {
		m.t.Error("a process is left")
	}
}

// difference lists the lines that one of two lists has and the other has not.
func difference(before, after string) string {
	had := map[string]bool{}
	for line := range strings.Lines(before + "\n") {
		had[line] = true
	}
	var all strings.Builder
	for line := range strings.Lines(after + "\n") {
		if !had[line] {
			all.WriteString("+ " + line)
		}
		delete(had, line)
	}
	for line := range had {
		all.WriteString("- " + line)
	}
	return all.String()
}
