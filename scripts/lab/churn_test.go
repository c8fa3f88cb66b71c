package lab

import "testing"

// Outcome: thirty times ftpalg ends, mostly by kill -9, and comes back; sessions go on, and nothing is left or lost of what others
// have in the kernel. `scripts/demo -churn 1000` has more.
func TestChurn(t *testing.T) {
	requireRoot(t)
	t.Parallel()
	binary, err := buildDaemon()
	if err != nil {
		t.Fatal(err)
	}
	if err := Churn(t.Context(), Config{ServersDir: serversDir, Binary: binary}, 30, 1); err != nil {
		t.Error(err)
	}
}
