package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/snapferry/snapferry"
)

// CreateKey makes a master key.
func (c *Client) CreateKey(ctx context.Context, req KeyRequest) (k Key, err error) {
	return k, c.do(ctx, http.MethodPost, "/v1/keys", req, &k)
}

// Keys returns the master keys of the account, by id.
func (c *Client) Keys(ctx context.Context) ([]snapferry.Key, error) {
	var list KeyList
	err := c.do(ctx, http.MethodGet, "/v1/keys", nil, &list)
	return list.Keys, err
}

func keyPath(name string) string { return "/v1/keys/" + url.PathEscape(name) }

// Key returns a master key by its id or an alias, with what is sealed with it.
func (c *Client) Key(ctx context.Context, name string) (k Key, err error) {
	return k, c.do(ctx, http.MethodGet, keyPath(name), nil, &k)
}

// ChangeKey does something to a master key: enable, disable, cancel-deletion or
// rotate.
func (c *Client) ChangeKey(ctx context.Context, name, action string) (k Key, err error) {
	return k, c.do(ctx, http.MethodPost, keyPath(name)+"/"+url.PathEscape(action), nil, &k)
}

// ScheduleKeyDeletion has a master key deleted in some days.
func (c *Client) ScheduleKeyDeletion(ctx context.Context, name string, days int) (k Key, err error) {
	return k, c.do(ctx, http.MethodPost, keyPath(name)+"/schedule-deletion", KeyDeletion{Days: days}, &k)
}

// SetKeyAlias gives a master key an alias.
func (c *Client) SetKeyAlias(ctx context.Context, name string, req AliasRequest) (k Key, err error) {
	return k, c.do(ctx, http.MethodPost, keyPath(name)+"/alias", req, &k)
}

// RemoveKeyAlias takes an alias from the key that has it.
func (c *Client) RemoveKeyAlias(ctx context.Context, alias string) (k Key, err error) {
	return k, c.do(ctx, http.MethodDelete, keyPath(alias)+"/alias", nil, &k)
}

// KeyDefault returns what the account wants of new volumes and copies in the region.
func (c *Client) KeyDefault(ctx context.Context) (d KeyDefault, err error) {
	return d, c.do(ctx, http.MethodGet, "/v1/region/encrypt-by-default", nil, &d)
}

// SetKeyDefault changes that.
func (c *Client) SetKeyDefault(ctx context.Context, d KeyDefault) (now KeyDefault, err error) {
	return now, c.do(ctx, http.MethodPost, "/v1/region/encrypt-by-default", d, &now)
}
