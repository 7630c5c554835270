package blob

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"

	"github.com/snapferry/snapferry"
)

const (
	checkPlace = "check/"
	checkRaces = 8
)

// Check proves that the bucket gives what the program is built on:
// read-after-write, list-after-write, create-if-absent and delete. It makes a
// few small objects with random names under "check/" and removes them. The
// error is Unsupported and names what is missing; an error of another Kind
// says that the check could not be made.
func (b *Bucket) Check(ctx context.Context) (err error) {
	var id [16]byte
	rand.Read(id[:])
	place := checkPlace + hex.EncodeToString(id[:])
	made := []string{place + "/first"}
	for i := range checkRaces {
		made = append(made, fmt.Sprintf("%s/race.%d", place, i))
	}
	defer func() {
		for _, name := range made {
			if e := b.Delete(context.WithoutCancel(ctx), name); err == nil {
				err = e
			}
		}
	}()
	if err := b.checkOne(ctx, place, made[0]); err != nil {
		return err
	}
	for _, name := range made[1:] {
		if err := b.checkRace(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func (b *Bucket) checkOne(ctx context.Context, place, name string) error {
	body := bytes.Repeat([]byte("snapferry bucket check "), 1000)
	if err := b.Put(ctx, name, body); err != nil {
		return err
	}
	if got, err := b.Get(ctx, name, MaxBody); snapferry.IsKind(err, snapferry.NotFound) || err == nil && !bytes.Equal(got, body) {
		return missing("read-after-write", "an object just written does not read back")
	} else if err != nil {
		return err
	}
	if there, err := b.listed(ctx, place, name); err != nil {
		return err
	} else if !there {
		return missing("list-after-write", "an object just written is not listed")
	}
	if err := b.Put(ctx, name, []byte("other")); err == nil {
		return missing("create-if-absent", "an object was made a second time")
	} else if !snapferry.IsKind(err, snapferry.Exists) {
		return err
	}
	if got, err := b.Get(ctx, name, MaxBody); err != nil {
		return err
	} else if !bytes.Equal(got, body) {
		return missing("create-if-absent", "an object that could not be made again was changed")
	}
	if err := b.Delete(ctx, name); err != nil {
		return err
	}
	if _, err := b.Size(ctx, name); err == nil {
		return missing("delete", "an object just deleted is still there")
	} else if !snapferry.IsKind(err, snapferry.NotFound) {
		return err
	}
	if there, err := b.listed(ctx, place, name); err != nil {
		return err
	} else if there {
		return missing("delete", "an object just deleted is still listed")
	}
	return nil
}

func (b *Bucket) listed(ctx context.Context, prefix, name string) (there bool, err error) {
	err = b.List(ctx, prefix, "", func(i Info) error {
		there = there || i.Name == name
		return nil
	})
	return there, err
}

// checkRace lets two make one object at once.
func (b *Bucket) checkRace(ctx context.Context, name string) error {
	bodies := [2]string{"one", "two"}
	var errs [2]error
	done := make(chan struct{})
	go func() {
		defer close(done)
		errs[1] = b.Put(ctx, name, []byte(bodies[1]))
	}()
	errs[0] = b.Put(ctx, name, []byte(bodies[0]))
	<-done
	winner := -1
	for i, err := range errs {
		switch {
		case err != nil && !snapferry.IsKind(err, snapferry.Exists):
			return err
		case err == nil && winner >= 0:
			return missing("create-if-absent", "two made one object at once, and both were told they did")
		case err == nil:
			winner = i
		}
	}
	if winner < 0 {
		return missing("create-if-absent", "two made one object at once, and both were told it exists")
	}
	got, err := b.Get(ctx, name, MaxBody)
	if err != nil {
		return err
	}
	if string(got) != bodies[winner] {
		return missing("create-if-absent", "two made one object at once, and the bytes are of the one that lost")
	}
	return nil
}

func missing(property, what string) error {
	return snapferry.Errorf(snapferry.Unsupported, "the bucket does not give %s: %s", property, what).
		WithHint("use a store with strong consistency and conditional writes")
}
