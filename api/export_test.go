package api

import "github.com/labstack/echo/v4"

// Routes are all addresses that the server answers.
func (s *Server) Routes() []*echo.Route { return s.echo.Routes() }

// DecodeJSON is decodeJSON, for the fuzz test.
var DecodeJSON = decodeJSON

// Positions are positions, for the fuzz test.
type Positions struct{ positions }

// NewPositions makes them.
func NewPositions(key []byte) Positions { return Positions{newPositions(key)} }

// Encode is encode.
func (p Positions) Encode(seq uint64) string { return p.encode(seq) }

// Decode is decode.
func (p Positions) Decode(text string) (uint64, bool) { return p.decode(text) }
