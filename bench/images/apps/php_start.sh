#!/bin/sh
# php-fpm in the background, nginx in front of it.
cat >/tmp/php-fpm.conf <<CONF
[global]
error_log = /dev/stderr
[www]
user = www-data
group = www-data
listen = /tmp/php.sock
listen.owner = www-data
listen.group = www-data
pm = static
pm.max_children = 2
CONF
# Its version is in its name.
set -- /usr/sbin/php-fpm[0-9]*
"$1" --nodaemonize --fpm-config /tmp/php-fpm.conf &
exec nginx -c /srv/app/php_nginx.conf
