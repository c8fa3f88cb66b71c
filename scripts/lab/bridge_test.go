package lab

import "testing"

// TestBridges runs the rows of the demo's second table.
func TestBridges(t *testing.T) {
	requireRoot(t)
	t.Parallel()
	binary, err := buildDaemon()
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range Bridges() {
		t.Run(b.Name, func(t *testing.T) {
			result := b.Run(t.Context(), Config{ServersDir: serversDir, Binary: binary})
			t.Log("without ftpalg:", result.Without)
			if result.Err != nil {
				t.Error(result.Err)
				for _, e := range result.Log {
					t.Log("ftpalg:", e.Line)
				}
			}
		})
	}
}
