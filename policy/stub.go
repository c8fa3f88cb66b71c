package policy

func (s *Server) Dial(port uint16) (Channel, uint16) {
	c := s.Upstream.Control
	for _, p := range s.Implicit {
		if p == port && c == Same {
			c = Implicit
		}
	}
	if s.Upstream.Port != 0 {
		port = s.Upstream.Port
	}
	return c, port
}
