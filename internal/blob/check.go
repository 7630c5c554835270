package blob

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/snapferry/snapferry"
)

const (
	checkPlace   = "check/"
	checkRaces   = 8
	checkWriters = 8      // of one object at once
	checkRounds  = 3      // of objects listed
	checkObjects = 8      // of a round
	checkFirst   = 23_000 // bytes of the object that is made again
)

// The properties that Check proves.
const (
	ReadAfterWrite = "read-after-write"
	ListAfterWrite = "list-after-write"
	CreateIfAbsent = "create-if-absent"
	DeleteAtOnce   = "delete"
)

// Proof is a property of a bucket, and what was seen of it.
type Proof struct {
	Property string
	Seen     string // a sentence
}

// Check proves that the bucket gives what the program is built on:
// read-after-write, list-after-write, create-if-absent and delete. It makes a
// few dozen small objects with random names under "check/" and removes them.
// The error is Unsupported and names what is missing; an error of another Kind
// says that the check could not be made.
func (b *Bucket) Check(ctx context.Context) (proofs []Proof, err error) {
	var id [16]byte
	rand.Read(id[:])
	c := &check{b: b, place: checkPlace + hex.EncodeToString(id[:])}
	defer func() {
		if e := c.cleanUp(context.WithoutCancel(ctx)); err == nil {
			err = e
		}
	}()
	for _, p := range []struct {
		property string
		prove    func(context.Context) (string, error)
	}{
		{ReadAfterWrite, c.reads},
		{CreateIfAbsent, c.creates},
		{ListAfterWrite, c.lists},
		{DeleteAtOnce, c.deletes},
	} {
		seen, err := p.prove(ctx)
		if err != nil {
			return proofs, err
		}
		proofs = append(proofs, Proof{p.property, seen})
	}
	return proofs, nil
}

// LargeMaker is what a driver may have that makes large objects in another way
// than small ones: Check proves that way too.
type LargeMaker interface {
	// LargeFrom returns from how many bytes on an object is large; above MaxBody
	// none is.
	LargeFrom() int64
}

// check is one run of Check.
type check struct {
	b      *Bucket
	place  string
	made   []string
	bodies map[string][]byte // of the objects that lists left
}

func (c *check) put(ctx context.Context, name string, body []byte) error {
	c.made = append(c.made, name)
	return c.b.Put(ctx, name, body)
}

func (c *check) cleanUp(ctx context.Context) error {
	var errs []error
	for _, name := range c.made {
		errs = append(errs, c.b.Delete(ctx, name))
	}
	return errors.Join(errs...)
}

// reads proves that objects are there at once, whole and in ranges.
func (c *check) reads(ctx context.Context) (string, error) {
	sizes := []int{checkFirst, 0, 1, 1 << 20}
	for i, size := range sizes {
		name := c.place + "/first"
		if i > 0 {
			name = fmt.Sprintf("%s/read.%d", c.place, i)
		}
		body := checkBody(size)
		if err := c.put(ctx, name, body); err != nil {
			return "", err
		}
		if err := c.same(ctx, ReadAfterWrite, "an object just written does not read back", name, body); err != nil {
			return "", err
		}
		for _, r := range [][2]int{{0, size / 3}, {size / 3, size / 3}, {size - size/3, size / 3}} {
			p := make([]byte, r[1])
			if len(p) == 0 {
				continue
			}
			if err := c.b.ReadAt(ctx, name, p, int64(r[0])); err != nil && !snapferry.IsKind(err, snapferry.Corrupt) {
				return "", err
			} else if err != nil || !bytes.Equal(p, body[r[0]:r[0]+r[1]]) {
				return "", missing(ReadAfterWrite, "a range of an object just written does not read back")
			}
		}
	}
	return fmt.Sprintf("%d objects of up to 1 MiB read back at once, whole and in ranges", len(sizes)), nil
}

func checkBody(size int) []byte {
	return bytes.Repeat([]byte("snapferry bucket check "), size/23+1)[:size]
}

// same reports a missing property when an object has not this body.
func (c *check) same(ctx context.Context, property, what, name string, body []byte) error {
	got, err := c.b.Get(ctx, name, MaxBody)
	if snapferry.IsKind(err, snapferry.NotFound) || err == nil && !bytes.Equal(got, body) {
		return missing(property, what)
	}
	return err
}

// creates proves that a name is taken once, whoever comes.
func (c *check) creates(ctx context.Context) (string, error) {
	name := c.place + "/once"
	body := []byte("the first")
	if err := c.put(ctx, name, body); err != nil {
		return "", err
	}
	for _, other := range []string{"the other", "another, longer one", ""} {
		if err := c.b.Put(ctx, name, []byte(other)); err == nil {
			return "", missing(CreateIfAbsent, "an object was made a second time")
		} else if !snapferry.IsKind(err, snapferry.Exists) {
			return "", err
		}
		if err := c.same(ctx, CreateIfAbsent, "an object that could not be made again was changed", name, body); err != nil {
			return "", err
		}
	}
	for i := range checkRaces {
		if err := c.race(ctx, fmt.Sprintf("%s/race.%d", c.place, i)); err != nil {
			return "", err
		}
	}
	if err := c.large(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("of %d that made one object at once exactly one did, %d times", checkWriters, checkRaces), nil
}

// large proves that the name of a large object is taken once, if the driver
// has a way of its own for these.
func (c *check) large(ctx context.Context) error {
	d, ok := c.b.d.(LargeMaker)
	if !ok || d.LargeFrom() > MaxBody {
		return nil
	}
	name := c.place + "/large"
	body := checkBody(int(d.LargeFrom()))
	if err := c.put(ctx, name, body); err != nil {
		return err
	}
	if err := c.b.Put(ctx, name, append([]byte{'x'}, body[1:]...)); err == nil {
		return missing(CreateIfAbsent, "a large object was made a second time")
	} else if !snapferry.IsKind(err, snapferry.Exists) {
		return err
	}
	return c.same(ctx, CreateIfAbsent, "a large object that could not be made again was changed", name, body)
}

// race lets many make one object at once.
func (c *check) race(ctx context.Context, name string) error {
	c.made = append(c.made, name)
	var errs [checkWriters]error
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range errs {
		wg.Go(func() {
			<-start
			errs[i] = c.b.Put(ctx, name, fmt.Appendf(nil, "writer %d", i))
		})
	}
	close(start)
	wg.Wait()
	winner := -1
	for i, err := range errs {
		switch {
		case err != nil && !snapferry.IsKind(err, snapferry.Exists):
			return err
		case err == nil && winner >= 0:
			return missing(CreateIfAbsent, "several made one object at once, and two were told they did")
		case err == nil:
			winner = i
		}
	}
	if winner < 0 {
		return missing(CreateIfAbsent, "several made one object at once, and all were told it exists")
	}
	return c.same(ctx, CreateIfAbsent, "several made one object at once, and the bytes are of one that lost", name, fmt.Appendf(nil, "writer %d", winner))
}

// lists proves that a list has what was written before it began. The list is
// asked for before there is anything, and between the rounds: a store that
// keeps old lists would give one of those.
func (c *check) lists(ctx context.Context) (string, error) {
	c.bodies = map[string][]byte{}
	if err := c.listed(ctx, ListAfterWrite, "a list has objects that were never made"); err != nil {
		return "", err
	}
	for round := range checkRounds {
		for i := range checkObjects {
			name := fmt.Sprintf("%s/list.%d/%d", c.place, i, round)
			body := bytes.Repeat([]byte("x"), round*10+i)
			if err := c.put(ctx, name, body); err != nil {
				return "", err
			}
			c.bodies[name] = body
		}
		if err := c.listed(ctx, ListAfterWrite, "an object just written is not listed"); err != nil {
			return "", err
		}
	}
	return fmt.Sprintf("%d lists had all objects written before, with their sizes, in order", checkRounds), nil
}

// listed compares a list with the objects that must be in it.
func (c *check) listed(ctx context.Context, property, what string) error {
	var got []Info
	err := c.b.List(ctx, c.place+"/list.", "", func(i Info) error {
		got = append(got, i)
		return nil
	})
	if err != nil {
		return err
	}
	var want []Info
	for _, name := range slices.Sorted(maps.Keys(c.bodies)) {
		want = append(want, Info{Name: name, Size: int64(len(c.bodies[name]))})
	}
	if !slices.Equal(got, want) {
		return missing(property, what)
	}
	return nil
}

// deletes proves that what was deleted is gone for who reads and who lists.
func (c *check) deletes(ctx context.Context) (string, error) {
	first := c.place + "/first"
	names := append(slices.Sorted(maps.Keys(c.bodies)), first)
	gone := 0
	for i, name := range names {
		if i%2 > 0 && name != first {
			continue
		}
		if err := c.b.Delete(ctx, name); err != nil {
			return "", err
		}
		delete(c.bodies, name)
		gone++
		if _, err := c.b.Size(ctx, name); err == nil {
			return "", missing(DeleteAtOnce, "an object just deleted is still there")
		} else if !snapferry.IsKind(err, snapferry.NotFound) {
			return "", err
		}
	}
	if err := c.listed(ctx, DeleteAtOnce, "an object just deleted is still listed, or another is not"); err != nil {
		return "", err
	}
	if err := c.put(ctx, first, checkBody(checkFirst)); snapferry.IsKind(err, snapferry.Exists) {
		return "", missing(DeleteAtOnce, "the name of an object just deleted is still taken")
	} else if err != nil {
		return "", err
	}
	if err := c.same(ctx, DeleteAtOnce, "an object that was deleted and made again does not read back", first, checkBody(checkFirst)); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d objects were gone at once, for reads and lists", gone), nil
}

func missing(property, what string) error {
	return snapferry.Errorf(snapferry.Unsupported, "the bucket does not give %s: %s", property, what).
		WithHint("use a store with strong consistency and conditional writes")
}
