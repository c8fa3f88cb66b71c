// Package ftp is the wire grammar of the FTP control connection: lines over Telnet, commands, replies, and the
// host-port forms of PORT, PASV, EPRT and EPSV.
//
// Sources: RFC 959 (the protocol), RFC 854 (Telnet), RFC 2228 and 4217 (AUTH, PBSZ, PROT, CCC), RFC 2389 (FEAT),
// RFC 2428 (EPRT, EPSV), RFC 3659 (MLST and its kin) and RFC 7151 (HOST).
//
// A firewall has to read a line exactly as both ends read it, or refuse it. So where servers are known to differ in
// how they read some bytes, this grammar refuses those bytes instead of choosing a reading.
package ftp
