package nativeapi

import (
	"context"
	"net/http"

	"github.com/snapferry/snapferry"
	"github.com/snapferry/snapferry/client"
	"github.com/snapferry/snapferry/internal/api/internal/wire"
	"github.com/snapferry/snapferry/internal/control"
	"github.com/snapferry/snapferry/record"
)

// Keys is what the region does with master keys.
type Keys interface {
	CreateKey(ctx context.Context, account snapferry.AccountID, req control.KeyRequest) (snapferry.Key, error)
	Keys(ctx context.Context, account snapferry.AccountID) ([]snapferry.Key, error)
	Key(ctx context.Context, account snapferry.AccountID, name string) (snapferry.Key, snapferry.KeyUse, error)
	ChangeKey(ctx context.Context, account snapferry.AccountID, name string, a control.KeyAction) (snapferry.Key, error)
	ScheduleKeyDeletion(ctx context.Context, account snapferry.AccountID, name string, days int) (snapferry.Key, error)
	SetKeyAlias(ctx context.Context, account snapferry.AccountID, name, alias string, moved bool) (snapferry.Key, error)
	RemoveKeyAlias(ctx context.Context, account snapferry.AccountID, alias string) (snapferry.Key, error)
	EncryptByDefault(ctx context.Context, account snapferry.AccountID) (record.KeyDefault, error)
	SetEncryptByDefault(ctx context.Context, account snapferry.AccountID, encrypt bool, key string) (record.KeyDefault, error)
}

func (a *api) keyOperations() []wire.Operation {
	return []wire.Operation{
		wire.Op[client.KeyRequest, client.Key]{
			Name: "CreateKey", Method: "POST", Path: "/v1/keys", Status: http.StatusCreated, Limit: maxLong, Decode: decodeBody[client.KeyRequest], Call: a.createKey,
		},
		wire.Op[nothing, client.KeyList]{Name: "ListKeys", Method: "GET", Path: "/v1/keys", Decode: decodeNothing, Call: a.listKeys},
		wire.Op[string, client.Key]{Name: "GetKey", Method: "GET", Path: "/v1/keys/{key}", Decode: decodeKey, Call: a.getKey},
		wire.Op[keyAction, client.Key]{Name: "ChangeKey", Method: "POST", Path: "/v1/keys/{key}/{action}", Limit: maxLong, Decode: decodeKeyAction, Call: a.changeKey},
		wire.Op[ofKey[client.KeyDeletion], client.Key]{
			Name: "ScheduleKeyDeletion", Method: "POST", Path: "/v1/keys/{key}/schedule-deletion", Decode: decodeOfKey[client.KeyDeletion], Call: a.scheduleKeyDeletion,
		},
		wire.Op[ofKey[client.AliasRequest], client.Key]{Name: "SetKeyAlias", Method: "POST", Path: "/v1/keys/{key}/alias", Decode: decodeOfKey[client.AliasRequest], Call: a.setKeyAlias},
		wire.Op[string, client.Key]{Name: "RemoveKeyAlias", Method: "DELETE", Path: "/v1/keys/{key}/alias", Decode: decodeKey, Call: a.removeKeyAlias},
		wire.Op[nothing, client.KeyDefault]{Name: "GetEncryptByDefault", Method: "GET", Path: "/v1/region/encrypt-by-default", Decode: decodeNothing, Call: a.keyDefault},
		wire.Op[client.KeyDefault, client.KeyDefault]{
			Name: "SetEncryptByDefault", Method: "POST", Path: "/v1/region/encrypt-by-default", Decode: decodeBody[client.KeyDefault], Call: a.setKeyDefault,
		},
	}
}

// keyName reads the id or alias of a key.
func keyName(r *wire.Request) (string, error) {
	name := r.Path("key")
	if _, err := snapferry.ParseKeyID(name); err == nil {
		return name, nil
	}
	return name, snapferry.CheckKeyAlias(name)
}

func decodeKey(r *wire.Request) (string, error) {
	if _, err := r.Query(); err != nil {
		return "", err
	}
	return keyName(r)
}

type keyAction struct {
	name   string
	action control.KeyAction
}

func decodeKeyAction(r *wire.Request) (q keyAction, err error) {
	q.name, err = decodeKey(r)
	q.action = control.KeyAction(r.Path("action"))
	return q, err
}

// ofKey is a body about a key.
type ofKey[Q any] struct {
	name string
	body Q
}

func decodeOfKey[Q any](r *wire.Request) (q ofKey[Q], err error) {
	if q.name, err = keyName(r); err != nil {
		return q, err
	}
	q.body, err = decodeBody[Q](r)
	return q, err
}

func (a *api) createKey(ctx context.Context, who account, q client.KeyRequest) (client.Key, error) {
	k, err := a.region.CreateKey(ctx, who.ID, control.KeyRequest{Alias: q.Alias, Description: q.Description, Driver: q.Driver, External: q.External})
	return client.Key{Key: k}, err
}

func (a *api) listKeys(ctx context.Context, who account, _ nothing) (client.KeyList, error) {
	all, err := a.region.Keys(ctx, who.ID)
	if all == nil {
		all = []snapferry.Key{}
	}
	return client.KeyList{Keys: all}, err
}

func (a *api) getKey(ctx context.Context, who account, name string) (client.Key, error) {
	k, use, err := a.region.Key(ctx, who.ID, name)
	return client.Key{Key: k, Use: &use}, err
}

func (a *api) changeKey(ctx context.Context, who account, q keyAction) (client.Key, error) {
	k, err := a.region.ChangeKey(ctx, who.ID, q.name, q.action)
	return client.Key{Key: k}, err
}

func (a *api) scheduleKeyDeletion(ctx context.Context, who account, q ofKey[client.KeyDeletion]) (client.Key, error) {
	k, err := a.region.ScheduleKeyDeletion(ctx, who.ID, q.name, q.body.Days)
	return client.Key{Key: k}, err
}

func (a *api) setKeyAlias(ctx context.Context, who account, q ofKey[client.AliasRequest]) (client.Key, error) {
	k, err := a.region.SetKeyAlias(ctx, who.ID, q.name, q.body.Alias, q.body.Move)
	return client.Key{Key: k}, err
}

func (a *api) removeKeyAlias(ctx context.Context, who account, alias string) (client.Key, error) {
	k, err := a.region.RemoveKeyAlias(ctx, who.ID, alias)
	return client.Key{Key: k}, err
}

func (a *api) keyDefault(ctx context.Context, who account, _ nothing) (client.KeyDefault, error) {
	d, err := a.region.EncryptByDefault(ctx, who.ID)
	return client.KeyDefault{Encrypt: d.Encrypt, Key: string(d.Key)}, err
}

func (a *api) setKeyDefault(ctx context.Context, who account, q client.KeyDefault) (client.KeyDefault, error) {
	d, err := a.region.SetEncryptByDefault(ctx, who.ID, q.Encrypt, q.Key)
	return client.KeyDefault{Encrypt: d.Encrypt, Key: string(d.Key)}, err
}

func sealing(s client.Sealing) control.Sealing { return control.Sealing(s) }
