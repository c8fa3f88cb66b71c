package lab

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// serversDir is where scripts/setup unpacks the servers.
const serversDir = "../../.build/servers"

// buildDir is where buildDaemon puts ftpalg.
var buildDir string

// ownKernel tells whether the test runs in a machine of scripts/kernel's, which has what Debian's kernel has, and no Go.
var ownKernel = os.Getenv("FTPALG_OWN_KERNEL") == "1"

var buildDaemon = sync.OnceValues(func() (string, error) {
	if ownKernel {
		return filepath.Abs("../../.build/ftpalg")
	}
	binary := filepath.Join(buildDir, "ftpalg")
	out, err := exec.Command("go", "build", "-o", binary, "../../cmd/ftpalg").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("go build: %w: %s", err, out)
	}
	return binary, err
})

func TestMain(m *testing.M) {
	var err error
	if buildDir, err = os.MkdirTemp("", "ftpalg-e2e-"); err != nil {
		panic(err)
	}
	// Most of a scenario's time is spent waiting for silence.
	flag.Parse()
	if err := flag.Set("test.parallel", fmt.Sprint(2*runtime.NumCPU())); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(buildDir)
	os.Exit(code)
}

// TestScenarios runs the rows of the demo's table in which TLS stays closed: `-run TestScenarios/vsftpd/curl/plain/PASV/v4`
// runs one.
func TestScenarios(t *testing.T) {
	runScenarios(t, Scenarios(), func(s Scenario) bool { return s.Data == Closed })
}

// TestTerminated runs those in which ftpalg has the key: `-run TestTerminated/vsftpd/curl/implicit/P/relay/PASV/v4` runs
// one.
func TestTerminated(t *testing.T) {
	runScenarios(t, Scenarios(), func(s Scenario) bool { return s.Data != Closed })
}

// TestColdStart runs so many sessions, each the first after a start or a handover of ftpalg's, that any two properties meet.
// `scripts/demo -cold` runs all.
func TestColdStart(t *testing.T) {
	runScenarios(t, Pairwise(ColdScenarios()), func(Scenario) bool { return true })
}

func runScenarios(t *testing.T, scenarios []Scenario, wanted func(Scenario) bool) {
	requireRoot(t)
	t.Parallel()
	binary, err := buildDaemon()
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range Servers {
		t.Run(kind.Name, func(t *testing.T) {
			t.Parallel()
			// Made by the first scenario that needs it, so that a -run pattern builds no more than it uses.
			stage := sync.OnceValues(func() (*Stage, error) {
				return NewStage(t.Context(), kind, Config{ServersDir: serversDir, Binary: binary, Successors: scenarios[0].Start != Running})
			})
			used := false
			for _, scenario := range scenarios {
				if scenario.Server.Name != kind.Name || !wanted(scenario) {
					continue
				}
				t.Run(strings.TrimPrefix(scenario.String(), kind.Name+"/"), func(t *testing.T) {
					used = true
					runScenario(t, stage, scenario)
				})
			}
			if s, err := stage(); used && err == nil {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func runScenario(t *testing.T, stage func() (*Stage, error), scenario Scenario) {
	s, err := stage()
	if err != nil {
		t.Fatal(err)
	}
	switch result := s.Run(t.Context(), scenario); {
	case result.Err != nil:
		t.Error(result.Err)
		for _, e := range result.Log {
			t.Log("ftpalg:", e.Line)
		}
	case result.NotApplicable != "":
		t.Log("n/a:", result.NotApplicable)
	}
}

// sloppy is a gateway that opens everything, and reports a pinhole when a control connection comes.
const sloppy = `#!/bin/sh
iptables -w -P FORWARD ACCEPT
iptables -w -A FORWARD -m conntrack --ctstate INVALID -j DROP # without a rule that needs it, nothing is tracked
echo '{"msg":"ready"}'
stdbuf -oL conntrack -E -p tcp --orig-port-dst 21 -e NEW | while read -r line; do
	echo '{"msg":"pinhole","session":1,"mode":"PASV","from":"192.0.2.2","to":"198.51.100.2:50000"}'
done
`

// A scenario has to fail when the gateway is open, however well the transfers go: otherwise it proves nothing.
func TestOpenGatewayFails(t *testing.T) {
	requireRoot(t)
	binary := filepath.Join(t.TempDir(), "sloppy")
	if err := os.WriteFile(binary, []byte(sloppy), 0o755); err != nil {
		t.Fatal(err)
	}
	stage, err := NewStage(t.Context(), Servers[0], Config{ServersDir: serversDir, Binary: binary})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := stage.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, client := range []string{"curl", held.Name} {
		for _, scenario := range Scenarios() {
			if scenario.String() != "vsftpd/"+client+"/plain/PASV/v4" {
				continue
			}
			result := stage.Run(t.Context(), scenario)
			if result.Err == nil || !strings.Contains(result.Err.Error(), string(Client2)+" reached") {
				t.Errorf("%s: got error %v, want one that says that %s reached the server", scenario, result.Err, Client2)
			}
		}
	}
}
