package main

import (
	"crypto/tls"
	"fmt"
	"net"
	"sync"

	"ftpalg/alg"
)

// flight is what one side wrote at once.
type flight struct {
	from    alg.Side
	payload string
}

// recorder notes what both sides of a connection write, in order.
type recorder struct {
	mu      sync.Mutex
	flights []flight
}

// side is one end of a recorded connection.
type side struct {
	net.Conn
	from alg.Side
	to   *recorder
}

// Write notes the bytes before they go on: the other side's answer can only come later.
func (s side) Write(b []byte) (int, error) {
	s.to.mu.Lock()
	s.to.flights = append(s.to.flights, flight{s.from, string(b)})
	s.to.mu.Unlock()
	return s.Conn.Write(b)
}

// dialogue is what client and server say inside TLS, by turns.
var dialogue = []string{
	"USER lab\r\n", "331 Password required.\r\n", "PASS secret\r\n", "230 Logged in.\r\n", "PBSZ 0\r\n", "200 PBSZ=0.\r\n",
	"PROT P\r\n", "200 Protection set.\r\n", "TYPE I\r\n", "200 Type set.\r\n", "PWD\r\n", "257 \"/\" is the current directory.\r\n",
	"PASV\r\n", pasvReply, "RETR file\r\n", "150 Here it comes.\r\n",
}

// recordTLS has the dialogue over a real TLS session, and gives what an onlooker saw of it.
func recordTLS() ([]flight, error) {
	shown, err := certificate()
	if err != nil {
		return nil, err
	}
	a, b := net.Pipe()
	defer a.Close()
	r := &recorder{}
	client := tls.Client(side{a, alg.Client, r}, &tls.Config{InsecureSkipVerify: true})
	server := tls.Server(side{b, alg.Server, r}, &tls.Config{Certificates: []tls.Certificate{shown}})
	served := make(chan error, 1)
	go func() {
		defer b.Close()
		served <- answer(server)
	}()
	buf := make([]byte, 1024)
	for i := 0; i < len(dialogue) && err == nil; i += 2 {
		if _, err = client.Write([]byte(dialogue[i])); err == nil {
			_, err = client.Read(buf)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("record a TLS session: %w", err)
	}
	if err := <-served; err != nil {
		return nil, fmt.Errorf("record a TLS session: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.flights, nil
}

// answer is the server's part of the dialogue.
func answer(server *tls.Conn) error {
	buf := make([]byte, 1024)
	for i := 1; i < len(dialogue); i += 2 {
		if _, err := server.Read(buf); err != nil {
			return err
		}
		if _, err := server.Write([]byte(dialogue[i])); err != nil {
			return err
		}
	}
	return nil
}

// replay lets session i go into TLS and say what was recorded; its data connection gets a just-in-time pinhole.
func (f *fleet) replay(i int, recorded []flight) {
	f.say(i, alg.Server, "220 Ready.\r\n")
	f.exchange(i, "AUTH TLS\r\n", "234 Go on with TLS.\r\n")
	for _, x := range recorded {
		f.say(i, x.from, x.payload)
	}
	f.synchronise(i)
}
