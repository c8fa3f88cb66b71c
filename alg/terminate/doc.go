// Package terminate is the front end that ends a control connection at the gateway: transparent sockets with TLS, or
// without it, towards the client and towards the server. What is said in between is read by the same engine (package
// alg) and ruled by the same policy as in package inspect.
//
// The kernel hands connections over by TPROXY, so that each side sees the other's own address. Data connections go
// through the kernel (direct), or through here (relay) where there is TLS on them or something in them has to be counted: the
// client's TLS session is not the server's.
//
//	listener → Gateway → session ─ client lines, server lines → dialogue → alg.Control
//	                        └ promise: an announced data connection → relay: its two halves
package terminate
