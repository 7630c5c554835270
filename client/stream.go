package client

import (
	"bufio"
	"context"
	"encoding/json"
	"io"

	"github.com/snapferry/snapferry"
)

// stream makes a request and calls fn for each event of its answer. It returns
// nil only when the region said that it is done.
func (c *Client) stream(ctx context.Context, method, path string, body any, fn func(Event) error) error {
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		if len(lines.Bytes()) == 0 {
			continue
		}
		var e Event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return c.broken(ctx, err)
		}
		if e.Error != nil {
			return e.Error.err()
		}
		if err := fn(e); err != nil {
			return err
		}
		if e.Done {
			return nil
		}
	}
	err = lines.Err()
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return c.broken(ctx, err)
}

// progressOf returns a function for events that shows their progress.
func progressOf(show func(snapferry.Progress)) func(Event) error {
	return func(e Event) error {
		if e.Progress != nil && show != nil {
			show(*e.Progress)
		}
		return nil
	}
}
