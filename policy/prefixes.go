package policy

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// prefixes is a set of addresses: prefixes in ascending order, none within another. Look-up is a binary search.
type prefixes []netip.Prefix

// everything holds every address of both families.
var everything = prefixes{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}

// newPrefixes makes a set of any prefixes.
func newPrefixes(list []netip.Prefix) prefixes {
	list = slices.Clone(list)
	slices.SortFunc(list, comparePrefix)
	var set prefixes
	for _, p := range list {
		// A prefix sorts before all that it contains, so the last one kept is the only one that can hold this one.
		if n := len(set); n == 0 || !set[n-1].Overlaps(p) {
			set = append(set, p)
		}
	}
	return set
}

// find gives the position of the prefix that holds an address, or -1.
func (s prefixes) find(addr netip.Addr) int {
	i, exact := slices.BinarySearchFunc(s, addr, func(p netip.Prefix, a netip.Addr) int { return p.Addr().Compare(a) })
	if !exact {
		i-- // the last prefix that begins below the address
	}
	if i < 0 || !s[i].Contains(addr) {
		return -1
	}
	return i
}

// covers reports whether every prefix of other lies within one of s.
func (s prefixes) covers(other prefixes) bool {
	for _, p := range other {
		if i := s.find(p.Addr()); i < 0 || s[i].Bits() > p.Bits() {
			return false
		}
	}
	return true
}

// parseRange reads FIRST-LAST, two ports in plain decimal.
func parseRange(text string) (first, last uint16, ok bool) {
	a, b, found := strings.Cut(text, "-")
	first, ok1 := parsePort(a)
	last, ok2 := parsePort(b)
	return first, last, found && ok1 && ok2
}

func parsePort(text string) (uint16, bool) {
	n, err := strconv.ParseUint(text, 10, 16)
	return uint16(n), err == nil && n > 0 && text[0] != '0'
}
