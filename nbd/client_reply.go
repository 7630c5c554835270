package nbd

import (
	"encoding/binary"
	"errors"
	"io"
	"net"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/extent"
)

// statusExtent is an extent as a server reports it, in bytes.
type statusExtent struct{ length, flags uint32 }

// call is a request of a client and what has come of its reply.
type call struct {
	req    request
	p      []byte           // of a read: where the data goes
	status [][]statusExtent // of a block status: one for each selected context

	got  extent.Set // of a read: what has come, counted from its beginning
	err  error      // the first that the server told, or why there is no reply
	done chan struct{}
}

// do sends a request, with the payload of a write, and waits for the reply.
func (c *Client) do(k *call, payload []byte) error {
	k.done = make(chan struct{})
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return c.err
	}
	c.cookie++
	k.req.cookie = c.cookie
	c.calls[k.req.cookie] = k
	c.mu.Unlock()
	if err := c.send(&k.req, payload); err != nil {
		c.fail(snapferry.Errorf(snapferry.Unavailable, "the connection to the NBD server broke: %w", err))
	}
	<-k.done
	return k.err
}

func (c *Client) send(r *request, payload []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.head = appendRequest(c.head[:0], r)
	if len(payload) == 0 {
		_, err := c.conn.Write(c.head)
		return err
	}
	parts := net.Buffers{c.head, payload}
	_, err := parts.WriteTo(c.conn)
	return err
}

// fail ends the connection: what waits and what comes fails with err.
func (c *Client) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.mu.Unlock()
	c.conn.Close()
}

// receive reads replies until the connection ends, and then ends what waits.
func (c *Client) receive() {
	defer close(c.ended)
	var err error
	for err == nil {
		err = c.reply()
	}
	var e *snapferry.Error
	if !errors.As(err, &e) {
		err = snapferry.Errorf(snapferry.Unavailable, "the connection to the NBD server broke: %w", err)
	}
	c.fail(err)
	c.mu.Lock()
	defer c.mu.Unlock()
	for cookie, k := range c.calls {
		delete(c.calls, cookie)
		k.err = c.err
		close(k.done)
	}
}

// pending returns the call that a reply is for; it stays the client's.
func (c *Client) pending(cookie uint64) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.calls[cookie]; k != nil {
		return k, nil
	}
	return nil, nonsense("the NBD server replied to what was not asked")
}

// finished takes a call off the list and wakes who waits for it.
func (c *Client) finished(k *call) {
	c.mu.Lock()
	delete(c.calls, k.req.cookie)
	c.mu.Unlock()
	close(k.done)
}

func nonsense(format string, args ...any) error {
	return snapferry.Errorf(snapferry.Corrupt, format, args...)
}

// told is the error of a reply.
func told(r *request, e Errno, message []byte) error {
	return snapferry.Errorf(kindOf(e), "%s: the NBD server says: %w%s", r.cmd, e, shown(message))
}

// reply reads a simple reply or a chunk. Its error ends the connection.
func (c *Client) reply() error {
	var head [chunkSize]byte
	if _, err := io.ReadFull(c.r, head[:simpleSize]); err != nil {
		return err
	}
	f := fields{p: head[:]}
	switch f.u32() {
	case magicSimple:
		e, cookie := Errno(f.u32()), f.u64()
		return c.simpleReply(cookie, e)
	case magicStructured:
		if !c.structured {
			return nonsense("the NBD server sent a structured reply, which was not negotiated")
		}
		if _, err := io.ReadFull(c.r, head[simpleSize:]); err != nil {
			return err
		}
		flags, kind, cookie, n := f.u16(), f.u16(), f.u64(), f.u32()
		return c.chunk(cookie, flags, kind, n)
	}
	return nonsense("the NBD server sent no reply where one must be")
}

func (c *Client) simpleReply(cookie uint64, e Errno) error {
	k, err := c.pending(cookie)
	if err != nil {
		return err
	}
	if c.structured && (k.req.cmd == cmdRead || k.req.cmd == cmdBlockStatus) || k.got.Count() > 0 {
		return nonsense("the NBD server sent a simple reply where a structured one must be")
	}
	if e != 0 {
		if k.err == nil {
			k.err = told(&k.req, e, nil)
		}
	} else if k.req.cmd == cmdRead {
		if _, err := io.ReadFull(c.r, k.p); err != nil {
			return err
		}
	}
	c.finished(k)
	return nil
}

// chunk reads the payload of a chunk of n bytes.
func (c *Client) chunk(cookie uint64, flags, kind uint16, n uint32) error {
	k, err := c.pending(cookie)
	if err != nil {
		return err
	}
	switch {
	case kind == chunkNone:
		if n != 0 || flags&chunkDone == 0 {
			return nonsense("the NBD server sent a malformed last chunk")
		}
	case kind == chunkData && k.req.cmd == cmdRead:
		err = c.dataChunk(k, n)
	case kind == chunkHole && k.req.cmd == cmdRead:
		err = c.holeChunk(k, n)
	case kind == chunkStatus && k.req.cmd == cmdBlockStatus:
		err = c.statusChunk(k, n)
	case kind&chunkError != 0:
		err = c.errorChunk(k, kind, n)
	default:
		return nonsense("the NBD server replied to %s with a chunk of type %d", k.req.cmd, kind)
	}
	if err != nil || flags&chunkDone == 0 {
		return err
	}
	if err := k.complete(); err != nil {
		return err
	}
	c.finished(k)
	return nil
}

// complete reports whether a reply that ends now is whole.
func (k *call) complete() error {
	if k.err != nil {
		return nil
	}
	if k.req.cmd == cmdRead && k.got.Total() != int64(len(k.p)) {
		return nonsense("the NBD server sent %d bytes of %d", k.got.Total(), len(k.p))
	}
	for _, s := range k.status {
		if s == nil {
			return nonsense("the NBD server left a metadata context out")
		}
	}
	return nil
}

// place notes that a chunk for n bytes from off on has come, and returns where
// they belong.
func (k *call) place(off uint64, n int64) ([]byte, error) {
	at := off - k.req.off
	if off < k.req.off || n < 1 || at > uint64(len(k.p)) || n > int64(len(k.p))-int64(at) {
		return nil, nonsense("the NBD server sent %d bytes at %d for a read of %d bytes at %d", n, off, len(k.p), k.req.off)
	}
	before := k.got.Total()
	k.got.Add(extent.Extent{Off: int64(at), Len: n})
	if k.got.Total() != before+n {
		return nil, nonsense("the NBD server sent data twice")
	}
	return k.p[at : int64(at)+n], nil
}

func (c *Client) dataChunk(k *call, n uint32) error {
	var off [8]byte
	if n <= 8 {
		return nonsense("the NBD server sent a chunk without data")
	}
	if _, err := io.ReadFull(c.r, off[:]); err != nil {
		return err
	}
	p, err := k.place(binary.BigEndian.Uint64(off[:]), int64(n)-8)
	if err != nil {
		return err
	}
	_, err = io.ReadFull(c.r, p)
	return err
}

func (c *Client) holeChunk(k *call, n uint32) error {
	var b [12]byte
	if n != uint32(len(b)) {
		return nonsense("the NBD server sent a malformed hole")
	}
	if _, err := io.ReadFull(c.r, b[:]); err != nil {
		return err
	}
	p, err := k.place(binary.BigEndian.Uint64(b[:]), int64(binary.BigEndian.Uint32(b[8:])))
	if err != nil {
		return err
	}
	clear(p)
	return nil
}

// statusChunk reads the extents of one context.
func (c *Client) statusChunk(k *call, n uint32) error {
	if n < 12 || (n-4)%8 != 0 || (n-4)/8 > 1<<20 {
		return nonsense("the NBD server sent a malformed block status")
	}
	var b [8]byte
	if _, err := io.ReadFull(c.r, b[:4]); err != nil {
		return err
	}
	id := binary.BigEndian.Uint32(b[:])
	index := -1
	for i, m := range c.contexts {
		if m.id == id {
			index = i
		}
	}
	if index < 0 || k.status[index] != nil {
		return nonsense("the NBD server sent a block status of a context that was not asked for")
	}
	var extents []statusExtent
	var sum uint64
	for range (n - 4) / 8 {
		if _, err := io.ReadFull(c.r, b[:]); err != nil {
			return err
		}
		e := statusExtent{binary.BigEndian.Uint32(b[:]), binary.BigEndian.Uint32(b[4:])}
		// Only the last extent may reach behind what was asked for.
		if e.length == 0 || sum >= uint64(k.req.length) {
			return nonsense("the NBD server sent a block status with an extent too many")
		}
		sum += uint64(e.length)
		extents = append(extents, e)
	}
	k.status[index] = extents
	return nil
}

// errorChunk reads an error, and what may come with it.
func (c *Client) errorChunk(k *call, kind uint16, n uint32) error {
	least := uint32(6)
	if kind == chunkErrorOffset {
		least = 14
	}
	if n < least || n > 2*maxString {
		return nonsense("the NBD server sent a malformed error")
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(c.r, p); err != nil {
		return err
	}
	f := fields{p: p}
	e := Errno(f.u32())
	message := f.take(int(f.u16()))
	if kind == chunkErrorOffset {
		off := f.u64()
		if at := off - k.req.off; off < k.req.off || at > uint64(k.req.length) {
			return nonsense("the NBD server sent an error at %d for a range of %d bytes at %d", off, k.req.length, k.req.off)
		}
	}
	if f.bad || e == 0 {
		return nonsense("the NBD server sent a malformed error")
	}
	if k.err == nil {
		k.err = told(&k.req, e, message)
	}
	return nil
}
