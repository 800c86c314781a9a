//! The longer texts of `narfs --help`, and the parts that several verbs share.

/// What narfs is.
pub(super) const ABOUT: &str = "\
Mounts Nix binary caches as /nix/store and fetches a file's bytes when they are read.

Names, sizes and links come from a cache's listings, so that looking around costs next to nothing; \
a file's bytes are fetched when a program reads them, checked, and kept. Nothing has to be \
converted: every Nix binary cache works as it is. Without any configuration, https://cache.nixos.org/ \
is mounted.";

/// What stands below the help of `narfs` itself.
pub(super) const AFTER: &str = "\
Exit status:
  0    done
  1    failed for a reason that none of the others names
  2    the command line or the configuration is wrong; nothing was done
  3    no cache has the store path, or there is no such file in it
  4    no trusted signature, or bytes without the hash that was signed
  5    a cache or the daemon cannot be reached or did not answer in time
  6    the system does not allow it: no FUSE, no privilege, mountpoint in use
  126  `narfs run`: the program cannot be executed
  127  `narfs run`: there is no such program
  130  interrupted from the keyboard

Verbs for narfs itself:
  daemon     serves a state directory; started by mount and run, see `narfs daemon --help`

Configuration:
  Every setting has a key in the configuration file, an environment variable and a flag; \
`narfs config --help` lists them, `narfs config` shows what is in effect and why. Flags win over \
variables, variables over files.

Files:
  /etc/narfs/config.toml                 configuration of the machine
  $XDG_CONFIG_HOME/narfs/config.toml     configuration of the user (else ~/.config/narfs/…)
  /var/lib/narfs                         what root's narfs keeps
  $XDG_DATA_HOME/narfs                   what a user's narfs keeps (else ~/.local/share/narfs)
  MOUNTPOINT/.nix-snapshotter/           status of every store path as JSON, found by name only

Environment:
  NARFS_CONFIG                           a configuration file instead of those above
  NARFS_…                                settings, see `narfs config --help`
  HTTPS_PROXY, HTTP_PROXY, NO_PROXY      proxies, in the usual form
  AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_PROFILE, …
                                         credentials for s3:// caches
  NO_COLOR                               no colours, unless --color says otherwise

Examples:
  See it work, with nothing but this program:
    $ narfs demo

  Run a program from cache.nixos.org as an ordinary user:
    $ narfs run /nix/store/HASH-python3-3.11.9/bin/python3 -c 'print(1 + 1)'

  Mount a store with an own cache next to the public one:
    # narfs mount --background --cache https://cache.example.org --cache https://cache.nixos.org \\
        --trusted-key example-1:BASE64 --trusted-key cache.nixos.org-1:BASE64 /nix/store";
