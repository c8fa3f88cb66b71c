package ftp

import "bytes"

// NamesTLS says whether the argument of AUTH is one of TLS's names: TLS, TLS-C, TLS-P and SSL are one mechanism (RFC 4217
// section 4, MS-FTPS 1.3), in any case.
func NamesTLS(arg []byte) bool {
	name := bytes.TrimSpace(arg)
	for _, tls := range []string{"TLS", "TLS-C", "TLS-P", "SSL"} {
		if bytes.EqualFold(name, []byte(tls)) {
			return true
		}
	}
	return false
}
