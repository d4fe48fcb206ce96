# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: The shisa authors
"""Runs passes of OpenStack Nova's image cache, as a program that is asked for each.

Nova is Debian's, unchanged: ComputeManager._run_image_cache_manager_pass registers the host, lists the
instances by objects.InstanceList from a database that Nova's own models made, and hands them to
ImageCacheManager of the libvirt driver, which reads images by qemu-img and removes files. What stands in for
a compute node:

 - the driver itself, which only passes the list on;
 - the privileged helper, whose functions run in this process;
 - the clock of a host that is wrong, by the seconds that it is ahead. All other clocks are the machine's:
   who asks moves the times of files instead.

Each line of the standard input is a request in JSON, each line of the standard output its answer.
"""
import json
import logging
import os
import sys
import time
import traceback

answers = os.fdopen(os.dup(1), 'w')
os.dup2(2, 1)

from nova import context, objects
import nova.conf
from nova.compute import manager
from nova.db import migration
from nova.db.main import api, models
import nova.privsep
import nova.privsep.fs
from nova.virt.libvirt import imagecache
import nova.virt.libvirt.imagebackend  # registers options of the driver

CONF = nova.conf.CONF
CONF([], project='nova', default_config_files=[])
CONF.set_override('connection', sys.argv[1], group='database')
nova.privsep.sys_admin_pctxt.set_client_mode(False)
objects.register_all()
api.configure(CONF)
migration.db_sync(database='main')  # as nova-manage db sync
admin = context.get_admin_context()
machine_time = time.time


class Log(logging.Handler):
    """Keeps what Nova writes to its log."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.levelname + ' ' + record.getMessage())


log = Log()
logger = logging.getLogger('nova')
logger.setLevel(logging.INFO)
logger.addHandler(log)
logger.propagate = False


class Driver:
    """The part of the libvirt driver between the manager and the image cache."""

    capabilities = {'has_imagecache': True}

    def __init__(self):
        self.image_cache_manager = imagecache.ImageCacheManager()

    def manage_image_cache(self, ctx, all_instances):
        self.image_cache_manager.update(ctx, all_instances)


class Manager:
    """What the pass needs of the manager."""

    def __init__(self):
        self.driver = Driver()


def one_pass(root, host, ahead):
    CONF.set_override('instances_path', root)
    CONF.set_override('host', host)
    time.time = lambda: machine_time() + ahead
    try:
        manager.ComputeManager._run_image_cache_manager_pass(Manager(), admin)
    finally:
        time.time = machine_time


def clear():
    """Empties the database, and gives every option its own value."""
    with api.get_engine().begin() as connection:
        for table in reversed(models.BASE.metadata.sorted_tables):
            connection.execute(table.delete())
    CONF.clear_override('default_ephemeral_format')


def instance(machine):
    m = machine
    flavor = objects.Flavor(name='f', flavorid='f', memory_mb=64, vcpus=1, root_gb=1, ephemeral_gb=m['ephemeral_gb'],
                            swap=m['swap_mb'], rxtx_factor=1.0, extra_specs={})
    # As in Instance.create.
    extra = {'flavor': json.dumps({'cur': flavor.obj_to_primitive(), 'old': None, 'new': None})}
    api.instance_create(admin, dict(
        uuid=m['uuid'], host=m['host'] or None, node=m['host'] or None, image_ref=m['image'], kernel_id=m['kernel'],
        ramdisk_id=m['ramdisk'], vm_state=m['state'], hostname='h', display_name='d', project_id='p', user_id='u',
        root_gb=1, ephemeral_gb=m['ephemeral_gb'], extra=extra,
        system_metadata={'image_base_image_ref': m['unshelved'] or m['image']}))


def execute(sql):
    with api.get_engine().begin() as connection:
        connection.exec_driver_sql(sql)


def disk(uuid, kind, size):
    api.block_device_mapping_create(admin, dict(
        instance_uuid=uuid, source_type='blank', destination_type='local', device_type='disk',
        guest_format='swap' if kind == 'swap' else None, volume_size=size, boot_index=-1,
        delete_on_termination=True, no_device=False), legacy=False)


def ephemeral(size):
    """The name that the libvirt driver gives to the base of an ephemeral disk (_create_image)."""
    kind = nova.privsep.fs.get_fs_type_for_os_type(None)
    extension = nova.privsep.fs.get_file_extension_for_os_type(kind, CONF.default_ephemeral_format)
    return 'ephemeral_%s_%s' % (size, extension)


def answer(request):
    do = request.pop('do')
    log.lines = []
    name = ''
    if do == 'pass':
        one_pass(**request)
    elif do == 'clear':
        clear()
    elif do == 'instance':
        instance(**request)
    elif do == 'execute':
        execute(**request)
    elif do == 'archive':
        api.archive_deleted_rows(admin, max_rows=1000)
    elif do == 'delete':
        api.instance_destroy(admin, request['uuid'])
    elif do == 'disk':
        disk(**request)
    elif do == 'ephemeral':
        name = ephemeral(**request)
    elif do == 'format':
        CONF.set_override('default_ephemeral_format', request['name'])
    else:
        raise ValueError('nothing that can be asked: ' + do)
    return {'log': log.lines, 'name': name, 'error': ''}


for line in sys.stdin:
    try:
        reply = answer(json.loads(line))
    except Exception:
        reply = {'log': log.lines, 'name': '', 'error': traceback.format_exc()}
    answers.write(json.dumps(reply) + '\n')
    answers.flush()
