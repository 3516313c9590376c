package imagebuilder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/attended-sysupgrade/sysup/shared/build"
)

// ErrNoRoom says that one more unpacked tree would push out others.
var ErrNoRoom = errors.New("the disk space for unpacked ImageBuilders is used up")

// Stock brings an ImageBuilder ahead of demand, and does nothing if it is there:
// where Options has Archives, its archive, verified, among these; else its tree,
// unpacked, as long as there is room: ErrNoRoom.
func (s *Store) Stock(ctx context.Context, src Source) error {
	if s.options.Archives != nil && src.Key != "" {
		return s.stockArchive(ctx, src)
	}
	stored, total := s.trees()
	trees := slices.DeleteFunc(stored, func(one storedTree) bool { return one.root != "" })
	_, err := os.Stat(filepath.Join(s.dir, src.SHA256, "tree"))
	if err != nil && total+total/int64(max(1, len(trees))) > s.options.Budget {
		return ErrNoRoom
	}
	tree, err := s.Tree(ctx, src, func(build.Stage) {})
	if err == nil {
		tree.Release()
	}
	return err
}

// stockArchive does not read what is stored: builders verify it when they do,
// and replace it if it is of no use.
func (s *Store) stockArchive(ctx context.Context, src Source) error {
	r, _, err := s.options.Archives.Open(ctx, src.Key)
	if err == nil {
		return r.Close()
	}
	if !errors.Is(err, build.ErrNotFound) {
		return fmt.Errorf("look for %s among the stored ImageBuilders: %w", src.Name, err)
	}
	folder, err := os.MkdirTemp(s.dir, quarantine)
	if err != nil {
		return fault("store an ImageBuilder", err)
	}
	defer s.remove(folder)
	packed := filepath.Join(folder, "archive")
	if err := s.download(ctx, src, packed); err != nil {
		return err
	}
	f, err := os.Open(packed)
	if err != nil {
		return fault("open an ImageBuilder", err)
	}
	defer f.Close()
	if err := s.options.Archives.Put(ctx, src.Key, f, keptPolicy); err != nil {
		return fmt.Errorf("store %s for builders: %w", src.Name, err)
	}
	return nil
}
