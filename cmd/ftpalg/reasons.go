package main

import (
	"strings"

	"ftpalg/alg"
)

// reasons lists every reason that a log line may have, with the reply that terminated clients get where it refuses something.
func (p *page) reasons() {
	p.section("REASONS")
	p.text("What reason= in a log line says, and after it the reply of terminated sessions where there is one. In inspected sessions a " +
		"denied command is overwritten, so that the server answers that it does not know it; a reply that must not announce a " +
		"port becomes a 425, and what ends a session resets it.")
	for _, r := range alg.Reasons() {
		code, _, _ := strings.Cut(r.Reply(), " ")
		p.item(r.String(), code)
		p.text(r.Means())
	}
}
