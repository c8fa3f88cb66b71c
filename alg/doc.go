// Package alg is one FTP control connection as a state machine: bytes in, effects out. It has no sockets, clock,
// goroutines or log. The front ends (inspect, replay, terminate) feed it and carry its effects out.
//
// The design's rules, which comments cite by number:
//
//  1. An address from the wire is never an authority: it is compared with the connection's own peers, and the peer's is used.
//  2. The expectation stands before what announces it goes on; if it cannot be installed, that does not go on either.
//  3. One pinhole of a control connection is outstanding. It goes when it is used, with its own transfer's final reply, with the
//     next data command, at the session's end, or at its timeout.
//  4. Replies open pinholes only for a command that asked. 227 and 229 both answer PASV and EPSV, with the same checks.
//  5. Clear text between AUTH and its reply, or behind AUTH in its segment, is never read as commands. A refused AUTH leaves
//     the session in clear text. Only 234 begins TLS.
//  6. Fail closed: what is read does not pass unread. Fail open is a word of the policy.
//  7. Everything is bounded by a named constant, and each client has a share of what all share.
//  8. A crash leaves no open door and no broken gateway.
//  9. A session begins with its connection's SYN. What is met later is resumed with nothing known, and a new connection
//     inherits nothing of an old one between the same ports.
//  10. State that the policy rests on is believed on evidence. Where replies and commands may have parted it is unknown, and
//     what depends on it is denied; where the policy rests on state, commands go in step.
//  11. Under a control connection of ours the kernel expects nothing that we did not ask for.
//  12. One session's fault ends no other session.
//  13. Bytes go on as they came or are refused with a reply. A name is never changed.
//  14. Nothing is learned at the cost of a user's transfer.
//  15. Before a greeting and a login nothing opens.
package alg
