//go:build !linux

package nbd

import "net"

func newWire(conn net.Conn) (wire, error) { return connWire{conn}, nil }
