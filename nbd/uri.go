package nbd

import (
	"net"
	"net/url"
	"strings"

	"github.com/snapferry/snapferry"
)

// defaultPort is the port that IANA assigned.
const defaultPort = "10809"

// URI is where an export is, as doc/uri.md of the protocol has it:
//
//	nbd://host:port/export          nbd+unix:///export?socket=path
//	nbds://host:port/export         nbds+unix:///export?socket=path
type URI struct {
	Network  string // tcp or unix, for net.Dial
	Address  string // host and port, or path of the socket
	Export   string // name of the export; may be empty
	TLS      bool   // nbds: without TLS there is no connection
	Hostname string // that the server's certificate must have; may be empty
	NoVerify bool   // tls-verify-peer=0: take any certificate
}

// ParseURI reads a URI. The error is Invalid, or Unsupported for ways of TLS
// that this package does not know.
func ParseURI(s string) (*URI, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Invalid, "malformed NBD URI")
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, snapferry.Errorf(snapferry.Invalid, "malformed query in the NBD URI")
	}
	scheme, unix := strings.CutSuffix(u.Scheme, "+unix")
	if scheme != "nbd" && scheme != "nbds" || u.Opaque != "" {
		return nil, snapferry.Errorf(snapferry.Invalid, "%q is no NBD URI", s).
			WithHint("use nbd://HOST/EXPORT, nbds://HOST/EXPORT, nbd+unix:///EXPORT?socket=PATH or nbds+unix:///EXPORT?socket=PATH")
	}
	r := &URI{TLS: scheme == "nbds", Export: strings.TrimPrefix(u.Path, "/"), Hostname: u.Hostname()}
	if len(r.Export) > maxString {
		return nil, snapferry.Errorf(snapferry.Invalid, "the name of the export has more than %d bytes", maxString)
	}
	if err := r.parameters(query); err != nil {
		return nil, err
	}
	if unix {
		socket := query.Get("socket")
		if socket == "" || u.Host != "" {
			return nil, snapferry.Errorf(snapferry.Invalid, "an NBD URI of a unix socket has a parameter socket=PATH and no host")
		}
		if name, ok := strings.CutPrefix(socket, "\x00"); ok {
			socket = "@" + name // the abstract name space, as package net writes it
		}
		r.Network, r.Address = "unix", socket
		return r, nil
	}
	if query.Has("socket") || u.Hostname() == "" {
		return nil, snapferry.Errorf(snapferry.Invalid, "an NBD URI of a host names the host and no socket")
	}
	port := u.Port()
	if port == "" {
		port = defaultPort
	}
	r.Network, r.Address = "tcp", net.JoinHostPort(u.Hostname(), port)
	return r, nil
}

func (r *URI) parameters(query url.Values) error {
	for key, values := range query {
		v := values[0]
		switch {
		case len(values) > 1:
			return snapferry.Errorf(snapferry.Invalid, "the NBD URI has the parameter %q more than once", key)
		case key == "socket":
		case key == "tls-hostname":
			r.Hostname = v
		case key == "tls-verify-peer" && (v == "0" || v == "1"):
			r.NoVerify = v == "0"
		case key == "tls-type" && v == "x509":
		case key == "tls-type":
			return snapferry.Errorf(snapferry.Unsupported, "TLS of the type %q is not supported", v).WithHint("use x509")
		default:
			return snapferry.Errorf(snapferry.Invalid, "the NBD URI has an unknown parameter %q", key)
		}
	}
	return nil
}
