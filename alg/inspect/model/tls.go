package model

// TLS of the model: real records, and for their secrets a mark that the generator puts into what a client with the keys sends
// alone. Bytes inside are changed, so that nobody reads them by accident.

var (
	secret   = []byte("\x91key")
	finished = append([]byte("\x91fin"), make([]byte, 53-4)...)
)

// serverHello is a ServerHello of TLS 1.3, ChangeCipherSpec, and the rest of the server's first flight.
var serverHello = func() string {
	body := "\x03\x03" + string(make([]byte, 32)) + "\x00" + "\x13\x01" + "\x00" + "\x00\x06" + "\x00\x2b\x00\x02\x03\x04"
	hello := "\x02\x00\x00" + string(rune(len(body))) + body
	return Record(22, hello) + Record(20, "\x01") + Record(23, string(make([]byte, 200)))
}()

// clientHello begins TLS.
var clientHello = Record(22, "\x01\x00\x00\x28\x03\x03"+string(make([]byte, 38)))

// clientFinished ends the client's side of the handshake.
var clientFinished = Record(20, "\x01") + Record(23, string(finished))

// Record frames a body as a TLS record.
func Record(kind byte, body string) string {
	return string([]byte{kind, 3, 3, byte(len(body) >> 8), byte(len(body))}) + body
}

// sealed is what a client inside TLS says.
func sealed(text string) string { return Record(23, string(secret)+hide(text)) }

// hide changes every byte, and back.
func hide(text string) string {
	b := []byte(text)
	for i := range b {
		b[i] ^= 0x80
	}
	return string(b)
}
