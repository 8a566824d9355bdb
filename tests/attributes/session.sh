# What a user types, and what comes out: run in a directory of the disk and in one of the mount, as
# root, the output is the same. NOBODY and others are numbers: no account is needed.
set +e
umask 022
exec 2>&1
as() { setpriv --reuid "$1" --regid "$1" "${@:2}"; }
said() { echo "== $*"; }

said "a default ACL takes the place of the umask"
mkdir acl
setfacl -d -m u:1:rwx,g:2:rx,o::- acl
(umask 077; touch acl/file; mkdir acl/dir; mkfifo acl/fifo)
getfacl -n -p acl acl/file acl/dir acl/fifo
(umask 027; touch masked; mkdir masked.d; mknod masked.c c 1 3)
stat -c '%A %n' masked masked.d masked.c

said "an ACL changes the mode, and the mode the ACL"
touch file
setfacl -m u:65534:rw file
chmod 640 file
getfacl -n -p file
ls -l file | cut -c1-11
as 65534 --clear-groups sh -c 'cat file; echo more >> file'
setfacl -b file
as 65534 --clear-groups cat file

said "attributes of every namespace"
setfattr -n user.note -v 1 file
setfattr -n trusted.note -v 2 file
setfattr -n security.note -v 3 file
getfattr -d -m - file
as 65534 --clear-groups getfattr -d -m - file
ln -s nowhere link
setfattr -h -n trusted.note -v 4 link
setfattr -h -n user.note -v 5 link
getfattr -h -d -m - link
setfattr -x user.none file
setfattr -n odd.note -v 1 file
setcap cap_net_raw+ep file
getcap file
echo more >> file
getcap file

said "what a write, a truncation and a chown take away"
for change in 'echo x >> f' ': > f' 'truncate -s 7 f' 'fallocate -l 9 f'; do
  rm -f f; echo x > f; chmod 6777 f
  as 65534 --clear-groups sh -c "$change"
  stat -c '%a %s' f
  chmod 6777 f
  sh -c "$change"
  stat -c '%a' f
done
touch given; chmod 6755 given; chown 1:1 given; stat -c '%a %u %g' given
as 1 --clear-groups sh -c 'chmod 6755 given; chgrp 1 given'; stat -c '%a' given
chgrp 7 given; as 1 --clear-groups chmod 2755 given; stat -c '%a' given

said "setgid and sticky directories"
mkdir sgid; chgrp 5 sgid; chmod 2777 sgid
as 1 --clear-groups sh -c 'umask 002; touch sgid/f; mkdir sgid/d; chmod 2755 sgid/f'
stat -c '%a %u %g %n' sgid/f sgid/d
mkdir sticky; chmod 1777 sticky; touch sticky/f
as 1 --clear-groups sh -c 'rm -f sticky/f; mv sticky/f sticky/g; mv sticky/f ./g'

said "supplementary groups"
mkdir group; chgrp 6 group; chmod 770 group
as 1 --groups 5,6 sh -c 'touch group/yes; touch mine 2>&1; ls group'
as 1 --groups 5 sh -c 'touch group/no; ls group'
as 1 --groups 5,6 sh -c 'touch group/g; chgrp 5 group/g; chgrp 7 group/g; chown 2 group/g'
setfacl -m u:9:rwx group
as 9 --clear-groups sh -c 'touch group/acl; ls group'
stat -c '%u %g %n' group/*

said "times"
touch -d '1901-12-14 12:00:00.123456789 UTC' old; stat -c '%.9Y %.9X' old
touch -d '1969-12-31 23:59:59.5 UTC' old; stat -c '%.9Y' old
touch -d '2400-01-01 00:00:00.000000001 UTC' old; stat -c '%.9Y' old
touch -m -d '2001-01-01 UTC' old; touch -a -d '2002-01-01 UTC' old; stat -c '%.9Y %.9X' old
chmod 666 old
as 1 --clear-groups sh -c 'touch -c old; touch -c -d 2001-01-01 old; touch -c -a old'

said "special files"
mkfifo fifo; mknod char c 1 3; mknod block b 7 200; mknod large c 300 70000
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("socket")'
stat -c '%F %t %T %n' fifo char block large socket
(cat fifo > got &) ; echo through > fifo; sleep 0.1; cat got
as 1 --clear-groups mknod theirs c 1 3

said "links"
echo x > one; ln one two; ln two three; stat -c %h one; rm two; stat -c %h one three
mkdir up; mkdir up/a up/b; stat -c %h up; rmdir up/a; stat -c %h up; ln up up2

said "names and errors"
name=$(printf 'n%.0s' $(seq 255)); target=$(printf 't%.0s' $(seq 4095))
touch "$name"; touch "n$name"; mkdir "$name/x"; rm "$name"
ln -s "$target" long; readlink long | wc -c; ln -s "t$target" longer
ln -s loop loop; cat loop; mkdir full; touch full/f; rmdir full; rmdir file; mv full file
mv file full/f/g; cat full; ls file/x; rm full; mv sticky sticky/sub; ln -s x link
python3 - <<'P'
import errno, os
def tell(what, call):
    try:
        call(); print(what, "works")
    except OSError as error:
        print(what, errno.errorcode[error.errno])
tell("nofollow", lambda: os.open("loop", os.O_RDONLY | os.O_NOFOLLOW))
tell("directory", lambda: os.open("file", os.O_RDONLY | os.O_DIRECTORY))
tell("write a directory", lambda: os.open("full", os.O_WRONLY))
tell("a socket", lambda: os.open("socket", os.O_RDONLY))
tell("exclusive", lambda: os.open("file", os.O_CREAT | os.O_EXCL))
tell("a long path", lambda: os.open("x/" * 2100, os.O_RDONLY))
tell("a long name", lambda: os.setxattr("file", "user." + "n" * 250, b"1"))
tell("too long a name", lambda: os.setxattr("file", "user." + "n" * 251, b"1"))
tell("too long a value", lambda: os.setxattr("file", "user.big", b"1" * 70000))
tell("a value again", lambda: os.setxattr("file", "user.note", b"1", os.XATTR_CREATE))
tell("a value that is not", lambda: os.setxattr("file", "user.new", b"1", os.XATTR_REPLACE))
tell("remove itself", lambda: os.rmdir("full/."))
tell("unlink a directory", lambda: os.unlink("full"))
tell("now, by one who may write", lambda: os.utime("file"))
P
