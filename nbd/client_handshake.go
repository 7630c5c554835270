package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/snapferry/snapferry"
)

const (
	// maxOptionReply is the longest reply to an option that is read, in bytes:
	// two strings and some numbers.
	maxOptionReply = 2*maxString + 64
	// maxOptionReplies is how many replies an option may have: exports of a list.
	maxOptionReplies = 1 << 16
)

// greeting is the client's side of the handshake.
type greeting struct {
	conn     net.Conn
	fixed    bool // options other than EXPORT_NAME are known
	noZeroes bool
	stop     func() bool // of what ends the handshake with its context
}

// greet begins the handshake, with TLS if that is wanted.
func greet(ctx context.Context, conn net.Conn, cfg *ClientConfig) (*greeting, error) {
	noDelay(conn)
	limit := cfg.Handshake
	if limit == 0 {
		limit = defaultHandshake
	}
	conn.SetDeadline(time.Now().Add(limit)) // an error shows in the next read
	g := &greeting{conn: conn, stop: context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })}
	if err := g.begin(ctx, cfg); err != nil {
		return nil, g.fail(ctx, err)
	}
	return g, nil
}

// fail closes the connection and returns the error to report.
func (g *greeting) fail(ctx context.Context, err error) error {
	g.stop()
	g.conn.Close() // the first error is the one to report
	var e *snapferry.Error
	switch {
	case ctx.Err() != nil:
		return snapferry.Errorf(snapferry.Cancelled, "NBD handshake: %w", ctx.Err())
	case errors.As(err, &e):
		return err
	}
	return snapferry.Errorf(snapferry.Unavailable, "NBD handshake: %w", err)
}

// done ends the time limit of the handshake.
func (g *greeting) done() error {
	g.stop()
	return g.conn.SetDeadline(time.Time{})
}

func (g *greeting) begin(ctx context.Context, cfg *ClientConfig) error {
	var p [18]byte
	if _, err := io.ReadFull(g.conn, p[:]); err != nil {
		return err
	}
	f := fields{p: p[:]}
	if f.u64() != magicInit {
		return snapferry.Errorf(snapferry.Corrupt, "this is no NBD server")
	}
	switch f.u64() {
	case magicOption:
	case magicOldstyle:
		return snapferry.Errorf(snapferry.Unsupported, "the NBD server speaks the oldstyle handshake only")
	default:
		return snapferry.Errorf(snapferry.Corrupt, "this is no NBD server")
	}
	flags := uint32(f.u16()) & (flagFixedNewstyle | flagNoZeroes)
	g.fixed, g.noZeroes = flags&flagFixedNewstyle != 0, flags&flagNoZeroes != 0
	if _, err := g.conn.Write(binary.BigEndian.AppendUint32(nil, flags)); err != nil {
		return err
	}
	if cfg.TLS == nil {
		return nil
	}
	if !g.fixed {
		return snapferry.Errorf(snapferry.Unsupported, "the NBD server knows no TLS")
	}
	if err := g.simple(optStartTLS); err != nil {
		return err
	}
	conn := tls.Client(g.conn, cfg.TLS)
	g.conn = conn
	if err := conn.HandshakeContext(ctx); err != nil {
		return snapferry.Errorf(snapferry.Denied, "TLS with the NBD server failed: %w", err)
	}
	return nil
}

// option sends an option and calls each for the replies but the last, which is
// a success or else the error.
func (g *greeting) option(opt uint32, data []byte, each func(kind uint32, data []byte) error) error {
	if _, err := g.conn.Write(appendOption(nil, opt, data)); err != nil {
		return err
	}
	for range maxOptionReplies {
		kind, data, err := g.optionReply(opt)
		switch {
		case err != nil:
			return err
		case kind == repAck:
			if len(data) != 0 {
				return snapferry.Errorf(snapferry.Corrupt, "the NBD server sent data where there is none")
			}
			return nil
		case kind&repError != 0:
			return refusal(opt, kind, data)
		}
		if err := each(kind, data); err != nil {
			return err
		}
	}
	return snapferry.Errorf(snapferry.Corrupt, "the NBD server does not end its replies")
}

func (g *greeting) optionReply(opt uint32) (kind uint32, data []byte, err error) {
	var head [optionReplySize]byte
	if _, err := io.ReadFull(g.conn, head[:]); err != nil {
		return 0, nil, err
	}
	f := fields{p: head[:]}
	magic, of, kind, n := f.u64(), f.u32(), f.u32(), f.u32()
	if magic != magicReply || of != opt || n > maxOptionReply {
		return 0, nil, snapferry.Errorf(snapferry.Corrupt, "the NBD server sent no reply to the option")
	}
	data = make([]byte, n)
	_, err = io.ReadFull(g.conn, data)
	return kind, data, err
}

// simple sends an option that has no data and is answered with yes or no.
func (g *greeting) simple(opt uint32) error {
	return g.option(opt, nil, func(uint32, []byte) error {
		return snapferry.Errorf(snapferry.Corrupt, "the NBD server sent a reply that was not asked for")
	})
}

// refused is what a server answers to an option.
type refused struct{ kind uint32 }

func (r refused) Error() string {
	switch r.kind {
	case repErrUnsup:
		return "the NBD server does not know the option"
	case repErrPolicy:
		return "the NBD server does not allow it"
	case repErrInvalid:
		return "the NBD server finds the option invalid"
	case repErrPlatform:
		return "the NBD server cannot do it"
	case repErrTLSReqd:
		return "the NBD server wants TLS"
	case repErrUnknown:
		return "the NBD server has no such export"
	case repErrShutdown:
		return "the NBD server is being shut down"
	case repErrBlockSize:
		return "the NBD server wants clients that know its block sizes"
	case repErrTooBig:
		return "the option is too long for the NBD server"
	}
	return "the NBD server refuses"
}

// kindOfRefusal is the table from refusals to Kinds.
func kindOfRefusal(kind uint32) snapferry.Kind {
	switch kind {
	case repErrUnsup, repErrPlatform, repErrBlockSize:
		return snapferry.Unsupported
	case repErrPolicy, repErrTLSReqd:
		return snapferry.Denied
	case repErrUnknown:
		return snapferry.NotFound
	case repErrShutdown:
		return snapferry.Unavailable
	}
	return snapferry.Invalid
}

func refusal(opt, kind uint32, message []byte) error {
	r := refused{kind}
	e := snapferry.Errorf(kindOfRefusal(kind), "%w%s", r, shown(message))
	if kind == repErrTLSReqd {
		e = e.WithHint("connect with nbds:// or nbds+unix://")
	}
	if opt == optStartTLS {
		e = e.WithHint("connect without TLS, or set TLS up at the server")
	}
	return e
}

// shown makes text of a server fit for a message of ours.
func shown(p []byte) string {
	if len(p) == 0 {
		return ""
	}
	return ": " + strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(p[:min(len(p), maxString)]), "?"))
}

// open asks for the export and fills in what c knows of it.
func (g *greeting) open(c *Client, cfg *ClientConfig) error {
	if len(cfg.Export) > maxString {
		return snapferry.Errorf(snapferry.Invalid, "the name of the export has more than %d bytes", maxString)
	}
	if !g.fixed {
		return g.exportName(c, cfg.Export)
	}
	err := g.simple(optStructuredReply)
	var r refused
	switch {
	case err == nil:
		c.structured = true
	case !errors.As(err, &r) || r.kind == repErrTLSReqd || r.kind == repErrShutdown:
		return err
	}
	if c.structured && len(cfg.Contexts) > 0 {
		if err := g.setContexts(c, cfg); err != nil && (!errors.As(err, &r) || r.kind == repErrUnknown) {
			return err
		}
	}
	err = g.goTo(c, cfg.Export)
	if errors.As(err, &r) && r.kind == repErrUnsup {
		return g.exportName(c, cfg.Export)
	}
	return err
}

// setContexts selects metadata contexts; there are none when it is refused.
func (g *greeting) setContexts(c *Client, cfg *ClientConfig) error {
	data := appendString(nil, cfg.Export)
	data = binary.BigEndian.AppendUint32(data, uint32(len(cfg.Contexts)))
	for _, name := range cfg.Contexts {
		data = appendString(data, name)
	}
	var found []metaContext
	err := g.option(optSetMeta, data, func(kind uint32, data []byte) error {
		f := fields{p: data}
		m := metaContext{id: f.u32(), name: string(f.p)}
		again := slices.ContainsFunc(found, func(o metaContext) bool { return o.id == m.id || o.name == m.name })
		if kind != repMetaContext || f.bad || again || !slices.Contains(cfg.Contexts, m.name) {
			return snapferry.Errorf(snapferry.Corrupt, "the NBD server selected a metadata context that was not asked for")
		}
		found = append(found, m)
		return nil
	})
	if err == nil {
		c.contexts = found
	}
	return err
}

// goTo opens the export with GO.
func (g *greeting) goTo(c *Client, name string) error {
	data := appendString(nil, name)
	wanted := []uint16{infoBlockSize, infoDescription}
	data = binary.BigEndian.AppendUint16(data, uint16(len(wanted)))
	for _, i := range wanted {
		data = binary.BigEndian.AppendUint16(data, i)
	}
	told := false
	err := g.option(optGo, data, func(kind uint32, data []byte) error {
		f := fields{p: data}
		info := f.u16()
		if kind != repInfo || f.bad {
			return snapferry.Errorf(snapferry.Corrupt, "the NBD server sent no information where it must be")
		}
		switch info {
		case infoExport:
			size := f.u64()
			c.flags = Flags(f.u16())
			told = true
			if !f.end() {
				return errInformation
			}
			return c.setSize(size)
		case infoDescription:
			c.description = strings.TrimPrefix(shown(f.p), ": ")
		case infoBlockSize:
			c.minBlock, c.preferred, c.maxPayload = f.u32(), f.u32(), f.u32()
			if !f.end() {
				return errInformation
			}
			return c.checkBlocks()
		}
		return nil
	})
	if err == nil && !told {
		return errInformation
	}
	return err
}

var errInformation = snapferry.Errorf(snapferry.Corrupt, "the NBD server sent malformed information on the export")

func (c *Client) setSize(size uint64) error {
	if size > 1<<63-1 {
		return snapferry.Errorf(snapferry.Corrupt, "the NBD server has a disk of %d bytes", size)
	}
	c.size = int64(size)
	return nil
}

// checkBlocks holds the server's block sizes against the protocol.
func (c *Client) checkBlocks() error {
	if c.minBlock == 0 || c.minBlock&(c.minBlock-1) != 0 || c.minBlock > 1<<16 || c.maxPayload < c.minBlock {
		return snapferry.Errorf(snapferry.Corrupt, "the NBD server has blocks of %d and payloads of %d bytes", c.minBlock, c.maxPayload)
	}
	c.maxPayload = min(c.maxPayload, MaxPayload)
	return nil
}

// exportName opens the export in the old way, which a server that does not
// agree answers by ending the connection.
func (g *greeting) exportName(c *Client, name string) error {
	if _, err := g.conn.Write(appendOption(nil, optExportName, []byte(name))); err != nil {
		return err
	}
	p := make([]byte, 10, 10+124)
	if !g.noZeroes {
		p = p[:10+124]
	}
	if _, err := io.ReadFull(g.conn, p); err != nil {
		if errors.Is(err, io.EOF) {
			return snapferry.Errorf(snapferry.NotFound, "the NBD server does not open the export")
		}
		return err
	}
	f := fields{p: p}
	size := f.u64()
	c.flags = Flags(f.u16())
	return c.setSize(size)
}

// list asks for the exports.
func (g *greeting) list() ([]ExportInfo, error) {
	if !g.fixed {
		return nil, snapferry.Errorf(snapferry.Unsupported, "the NBD server knows no lists")
	}
	var infos []ExportInfo
	err := g.option(optList, nil, func(kind uint32, data []byte) error {
		f := fields{p: data}
		name := f.str()
		if kind != repServer || f.bad {
			return snapferry.Errorf(snapferry.Corrupt, "the NBD server sent no export where one must be")
		}
		infos = append(infos, ExportInfo{name, strings.TrimPrefix(shown(f.p), ": ")})
		return nil
	})
	return infos, err
}

// abort ends the handshake without an export.
func (g *greeting) abort() {
	g.stop()
	g.conn.Write(appendOption(nil, optAbort, nil)) // a courtesy
	g.conn.Close()
}
