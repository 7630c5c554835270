package linktest

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// atOnce is how many bytes of one connection have their turn on the link before
// others do.
const atOnce = 32 << 10

// A packet is bytes on their way.
type packet struct {
	bytes   []byte
	arrives time.Time
	known   time.Time // when the sender hears that they arrived
}

// A pipe is one direction of a connection: the packets between the goroutine that
// reads at one end and that which writes at the other.
type pipe struct {
	mu     sync.Mutex
	moved  sync.Cond // signalled when anything of it changes
	queue  []packet  // guarded by mu, like all that follows
	flying int64     // bytes read whose arrival is not known yet
	ended  bool      // no packet follows
	broken bool      // nobody takes any
}

// carry moves bytes from one connection to another over the link until one of
// them ends. It counts those that arrived.
func (l *Link) carry(to, from net.Conn, arrived *atomic.Int64) {
	p := &pipe{}
	p.moved.L = &p.mu
	var writer sync.WaitGroup
	writer.Go(func() {
		if p.deliver(to, arrived) {
			// The end of what comes from there is the end of what goes there.
			if c, ok := to.(*net.TCPConn); ok && c.CloseWrite() == nil {
				return
			}
		}
		to.Close()
		from.Close()
	})
	for {
		b := make([]byte, atOnce)
		n, err := from.Read(b)
		if n > 0 {
			leaves, arrives, known := l.admit(n)
			p.push(packet{b[:n], arrives, known})
			// Who does not read on holds the sender back.
			time.Sleep(time.Until(leaves))
		}
		if err != nil || !p.wait(l.window) {
			break
		}
	}
	p.end()
	writer.Wait()
}

func (p *pipe) push(x packet) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue = append(p.queue, x)
	p.flying += int64(len(x.bytes))
	p.moved.Broadcast()
}

// wait waits until there is room in the window, which may change. It reports
// whether anybody takes what comes.
func (p *pipe) wait(window func() int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.flying >= window() && !p.broken {
		p.moved.Wait()
	}
	return !p.broken
}

func (p *pipe) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	p.moved.Broadcast()
}

// next returns the packet that arrives next, nil after the last.
func (p *pipe) next() *packet {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.queue) == 0 && !p.ended {
		p.moved.Wait()
	}
	if len(p.queue) == 0 {
		return nil
	}
	x := p.queue[0]
	p.queue = p.queue[1:]
	return &x
}

// landed makes room in the window when the sender knows that bytes arrived.
func (p *pipe) landed(x *packet) {
	free := func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.flying -= int64(len(x.bytes))
		p.moved.Broadcast()
	}
	if wait := time.Until(x.known); wait > 0 {
		time.AfterFunc(wait, free)
		return
	}
	free()
}

// deliver writes what arrives, in order, and reports whether that was all.
func (p *pipe) deliver(to net.Conn, arrived *atomic.Int64) bool {
	for {
		x := p.next()
		if x == nil {
			return true
		}
		time.Sleep(time.Until(x.arrives))
		arrived.Add(int64(len(x.bytes))) // before anybody can have seen them
		if n, err := to.Write(x.bytes); err != nil {
			arrived.Add(int64(n - len(x.bytes)))
			p.mu.Lock()
			defer p.mu.Unlock()
			p.broken = true
			p.moved.Broadcast()
			return false
		}
		p.landed(x)
	}
}
