package nbd

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/snapferry/snapferry"
)

// handshake is the state of a connection until an export is chosen.
type handshake struct {
	cfg  *ServerConfig
	conn net.Conn

	noZeroes   bool
	secure     bool // TLS has begun
	structured bool

	opened     *Export // kept open for the next option that names it
	openedName string
	contexts   []metaContext // selected
	contextsOf string        // name of the export they were selected of

	chosen *Export // set at the end
}

// metaContext is a context that a client selected.
type metaContext struct {
	id   uint32
	name string
}

// ending is what becomes of the handshake after an option.
type ending int

const (
	goesOn  ending = iota
	chosen         // transmission begins
	aborted        // the client wants no more
)

// run leads the handshake. Where chosen is nil afterwards, and the error too,
// the client has ended it.
func (h *handshake) run(ctx context.Context) error {
	h.conn.SetDeadline(time.Now().Add(h.cfg.Handshake)) // an error shows in the next read
	raw := h.conn
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	end, err := h.haggle(ctx)
	if err != nil {
		return err
	}
	if end == aborted {
		return nil
	}
	if !stop() {
		return ctx.Err()
	}
	return h.conn.SetDeadline(time.Time{})
}

// haggle greets the client and answers its options.
func (h *handshake) haggle(ctx context.Context) (ending, error) {
	p := binary.BigEndian.AppendUint64(nil, magicInit)
	p = binary.BigEndian.AppendUint64(p, magicOption)
	p = binary.BigEndian.AppendUint16(p, flagFixedNewstyle|flagNoZeroes)
	if _, err := h.conn.Write(p); err != nil {
		return 0, err
	}
	var head [optionSize]byte
	if n, err := io.ReadFull(h.conn, head[:4]); err != nil {
		if n == 0 && err == io.EOF {
			return aborted, nil // somebody looked whether we are there
		}
		return 0, err
	}
	flags := binary.BigEndian.Uint32(head[:])
	if flags&^(flagFixedNewstyle|flagNoZeroes) != 0 {
		return 0, snapferry.Errorf(snapferry.Invalid, "the client set unknown flags %#x", flags)
	}
	h.noZeroes = flags&flagNoZeroes != 0
	for {
		if n, err := io.ReadFull(h.conn, head[:]); err != nil {
			if n == 0 && err == io.EOF {
				return aborted, nil
			}
			return 0, err
		}
		if binary.BigEndian.Uint64(head[:]) != magicOption {
			return 0, snapferry.Errorf(snapferry.Invalid, "the client sent no option where one must be")
		}
		end, err := h.option(ctx, binary.BigEndian.Uint32(head[8:]), binary.BigEndian.Uint32(head[12:]))
		if err != nil || end != goesOn {
			return end, err
		}
	}
}

// option reads the data of an option and answers it.
func (h *handshake) option(ctx context.Context, opt, length uint32) (ending, error) {
	if length > maxOption {
		if length > maxSkipped || opt == optExportName {
			return 0, snapferry.Errorf(snapferry.Invalid, "the client sent an option of %d bytes", length)
		}
		if _, err := io.CopyN(io.Discard, h.conn, int64(length)); err != nil {
			return 0, err
		}
		return goesOn, h.refuse(opt, repErrTooBig, "the option is too long")
	}
	data := make([]byte, length)
	if _, err := io.ReadFull(h.conn, data); err != nil {
		return 0, err
	}
	if h.cfg.RequireTLS && !h.secure {
		switch opt {
		case optAbort, optStartTLS:
		case optExportName:
			return 0, snapferry.Errorf(snapferry.Denied, "the client wants an export without TLS")
		default:
			return goesOn, h.refuse(opt, repErrTLSReqd, "TLS is required")
		}
	}
	switch opt {
	case optExportName:
		return chosen, h.exportName(ctx, data)
	case optAbort:
		h.reply(opt, repAck, nil) // who aborts need not wait for it
		return aborted, nil
	case optList:
		return goesOn, h.list(ctx, data)
	case optStartTLS:
		return goesOn, h.startTLS(ctx, data)
	case optInfo, optGo:
		return h.info(ctx, opt, data)
	case optStructuredReply:
		if len(data) != 0 {
			return goesOn, h.refuse(opt, repErrInvalid, "this option has no data")
		}
		h.structured = true
		return goesOn, h.reply(opt, repAck, nil)
	case optListMeta, optSetMeta:
		return goesOn, h.metaContexts(ctx, opt, data)
	}
	return goesOn, h.refuse(opt, repErrUnsup, "this option is not known")
}

func (h *handshake) reply(opt, kind uint32, data []byte) error {
	_, err := h.conn.Write(appendOptionReply(nil, opt, kind, data))
	return err
}

func (h *handshake) refuse(opt, kind uint32, why string) error {
	return h.reply(opt, kind, []byte(cutString(why)))
}

// refuseExport answers that an export could not be opened.
func (h *handshake) refuseExport(opt uint32, err error) error {
	switch snapferry.KindOf(err) {
	case snapferry.NotFound:
		return h.refuse(opt, repErrUnknown, err.Error())
	case snapferry.Cancelled:
		return h.refuse(opt, repErrShutdown, "the server is being shut down")
	case snapferry.Internal:
		return h.refuse(opt, repErrPolicy, "the export cannot be opened") // the message may not be safe to show
	}
	return h.refuse(opt, repErrPolicy, err.Error())
}

// open opens the export of a name, or returns the one that is open.
func (h *handshake) open(ctx context.Context, name string) (*Export, error) {
	if h.opened != nil && h.openedName == name {
		return h.opened, nil
	}
	if err := h.closeOpened(); err != nil {
		return nil, err
	}
	if len(name) > maxString || strings.ContainsRune(name, 0) {
		return nil, snapferry.Errorf(snapferry.Invalid, "this cannot be the name of an export")
	}
	e, err := h.cfg.Exports.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	if err := e.check(); err != nil {
		e.close() // the first error is the one to report
		return nil, err
	}
	h.opened, h.openedName = e, name
	return e, nil
}

func (h *handshake) closeOpened() error {
	e := h.opened
	h.opened = nil
	return e.close()
}

// choose ends the handshake with the export that is open.
func (h *handshake) choose() {
	h.chosen, h.opened = h.opened, nil
	if h.contextsOf != h.openedName {
		h.contexts = nil
	}
}

func (h *handshake) exportName(ctx context.Context, data []byte) error {
	e, err := h.open(ctx, string(data))
	if err != nil {
		return snapferry.Errorf(snapferry.KindOf(err), "the client wants an export that it cannot have: %w", err)
	}
	p := binary.BigEndian.AppendUint64(nil, uint64(e.Device.Size()))
	p = binary.BigEndian.AppendUint16(p, uint16(e.flags(h.structured)))
	if !h.noZeroes {
		p = append(p, make([]byte, 124)...)
	}
	h.choose()
	_, err = h.conn.Write(p)
	return err
}

func (h *handshake) list(ctx context.Context, data []byte) error {
	if len(data) != 0 {
		return h.refuse(optList, repErrInvalid, "this option has no data")
	}
	infos, err := h.cfg.Exports.List(ctx)
	if err != nil {
		return h.refuse(optList, repErrPolicy, "the exports cannot be listed")
	}
	var p []byte
	for _, info := range infos {
		d := appendString(nil, cutString(info.Name))
		p = appendOptionReply(p, optList, repServer, append(d, cutString(info.Description)...))
	}
	_, err = h.conn.Write(appendOptionReply(p, optList, repAck, nil))
	return err
}

func (h *handshake) startTLS(ctx context.Context, data []byte) error {
	switch {
	case h.cfg.TLS == nil:
		return h.refuse(optStartTLS, repErrUnsup, "TLS is not offered")
	case h.secure:
		return h.refuse(optStartTLS, repErrInvalid, "TLS has begun already")
	case len(data) != 0:
		return h.refuse(optStartTLS, repErrInvalid, "this option has no data")
	}
	if err := h.reply(optStartTLS, repAck, nil); err != nil {
		return err
	}
	// Nothing that was said in the clear counts.
	err := h.closeOpened()
	h.structured, h.contexts, h.contextsOf = false, nil, ""
	conn := tls.Server(h.conn, h.cfg.TLS)
	h.conn, h.secure = conn, true
	if err != nil {
		return err
	}
	if err := conn.HandshakeContext(ctx); err != nil {
		return snapferry.Errorf(snapferry.Denied, "TLS with the client failed: %w", err)
	}
	return nil
}

// info answers INFO and GO.
func (h *handshake) info(ctx context.Context, opt uint32, data []byte) (ending, error) {
	f := fields{p: data}
	name := f.str()
	wanted := make(map[uint16]bool)
	for range f.u16() {
		wanted[f.u16()] = true
		if f.bad {
			break
		}
	}
	if !f.end() {
		return goesOn, h.refuse(opt, repErrInvalid, "malformed option")
	}
	e, err := h.open(ctx, name)
	if err != nil {
		return goesOn, h.refuseExport(opt, err)
	}
	d := binary.BigEndian.AppendUint16(nil, infoExport)
	d = binary.BigEndian.AppendUint64(d, uint64(e.Device.Size()))
	d = binary.BigEndian.AppendUint16(d, uint16(e.flags(h.structured)))
	p := appendOptionReply(nil, opt, repInfo, d)
	if wanted[infoName] {
		canonical := e.Name
		if canonical == "" {
			canonical = name
		}
		p = appendOptionReply(p, opt, repInfo, append([]byte{0, infoName}, cutString(canonical)...))
	}
	if wanted[infoDescription] && e.Description != "" {
		p = appendOptionReply(p, opt, repInfo, append([]byte{0, infoDescription}, cutString(e.Description)...))
	}
	// Unasked too: what does not understand it must ignore it.
	d = binary.BigEndian.AppendUint16(nil, infoBlockSize)
	for _, n := range []uint32{e.MinBlock, e.PreferredBlock, e.MaxPayload} {
		d = binary.BigEndian.AppendUint32(d, n)
	}
	p = appendOptionReply(p, opt, repInfo, d)
	p = appendOptionReply(p, opt, repAck, nil)
	end := goesOn
	if opt == optGo {
		h.choose()
		end = chosen
	}
	_, err = h.conn.Write(p)
	return end, err
}

// metaContexts answers LIST_META_CONTEXT and SET_META_CONTEXT.
func (h *handshake) metaContexts(ctx context.Context, opt uint32, data []byte) error {
	if opt == optSetMeta {
		h.contexts, h.contextsOf = nil, ""
	}
	f := fields{p: data}
	name := f.str()
	var queries []string
	for range f.u32() {
		queries = append(queries, f.str())
		if f.bad {
			break
		}
	}
	if !f.end() {
		return h.refuse(opt, repErrInvalid, "malformed option")
	}
	if !h.structured {
		return h.refuse(opt, repErrInvalid, "structured replies must be negotiated first")
	}
	e, err := h.open(ctx, name)
	if err != nil {
		return h.refuseExport(opt, err)
	}
	found := matchContexts(contextsOf(e.Device), queries, opt == optListMeta)
	if opt == optSetMeta {
		if len(found) > maxContexts {
			return h.refuse(opt, repErrTooBig, "too many metadata contexts")
		}
		for i, c := range found {
			h.contexts = append(h.contexts, metaContext{uint32(i + 1), c})
		}
		h.contextsOf = name
	}
	var p []byte
	for i, c := range found {
		id := uint32(0)
		if opt == optSetMeta {
			id = h.contexts[i].id
		}
		p = appendOptionReply(p, opt, repMetaContext, append(binary.BigEndian.AppendUint32(nil, id), c...))
	}
	_, err = h.conn.Write(appendOptionReply(p, opt, repAck, nil))
	return err
}

// contextsOf returns the contexts of a device.
func contextsOf(d Device) []string {
	if s, ok := d.(Statuser); ok {
		return s.Contexts()
	}
	return nil
}

// matchContexts returns those of the names that a query asks for. A query is a
// name; where lists are asked for it may also be a beginning that ends with a
// colon, and no query at all asks for everything.
func matchContexts(names, queries []string, list bool) []string {
	var found []string
	for _, name := range names {
		match := func(q string) bool {
			return q == name || list && strings.HasSuffix(q, ":") && strings.HasPrefix(name, q)
		}
		if list && len(queries) == 0 || slices.ContainsFunc(queries, match) {
			found = append(found, name)
		}
	}
	return found
}
