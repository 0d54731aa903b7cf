import pytest
from asking import predict_request
from plain_saved_model import WARMUP_FILE, save_plain_model, write_warmup
from served_model import ServedModel, ServingError
from server_process import running_server

pytestmark = pytest.mark.backend_independent


def test_a_model_that_cannot_be_served(tmp_path):
    with pytest.raises(ServingError, match="No versions of servable"):
        ServedModel(tmp_path, "model")
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"no model")
    with pytest.raises(ServingError, match="holds no SavedModel"):
        ServedModel(tmp_path, "model")
    save_plain_model(tmp_path / "1")
    model = ServedModel(tmp_path, "model")
    assert model.warm_up() == 0
    write_warmup(tmp_path / "1", [predict_request(text=["a"])] * 1001)
    with pytest.raises(ServingError, match="more than 1000"):
        model.warm_up()
    (tmp_path / "1" / WARMUP_FILE).write_bytes(b"these are no records of TensorFlow's")
    with pytest.raises(ServingError, match="corrupted record"):
        model.warm_up()
    write_warmup(tmp_path / "1", [predict_request(text=["a"]), predict_request(text=[1])])
    with (
        pytest.raises(RuntimeError, match=r"cannot serve.*dtype \(string\)"),
        running_server(tmp_path),
    ):
        pass
